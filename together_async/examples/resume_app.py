"""A chat whose answers survive reloads, lost connections and closed tabs: `EventSource` reads what `Hub` keeps.

    pip install together-async starlette uvicorn
    TOGETHER_API_KEY=... uvicorn together_async.examples.resume_app:app

Then open http://127.0.0.1:8000, ask, and open the same address in another tab.
"""
