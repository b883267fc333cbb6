"""The function that `--script` names."""

import json
import re
from pathlib import Path

from support.serving import Serving


class TestSays:
    async def test_a_function_of_the_request(self, tmp_path: Path) -> None:
        """It may import what lies beside it; where it fails, its author sees where, and the client a 500."""
        (tmp_path / "words.py").write_text("GREETING = 'Good day, '\n")
        script = tmp_path / "replies.py"
        script.write_text(
            "from words import GREETING\n"
            "def answer(request):\n"
            "    if request.n: raise KeyError('no such name')\n"
            "    return GREETING + request.messages[0]['content']\n"
        )
        async with Serving("--script", f"{script}:answer") as serving:
            status, body = await serving.ask("Ann", stream=False)
            assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Good day, Ann")
            status, body = await serving.ask("Ann", n=2)
            assert status == 500
            code, out, err = await serving.stop()
        assert code == 143
        assert "500 refused" in out
        assert re.match(r'  File ".*replies\.py", line 3, in answer\n(.|\n)*KeyError: .no such name.\n', err), err
        assert "Traceback" not in err
