"""The models that the emulator pretends to have."""

from __future__ import annotations

from typing import Any

import attrs

from together_async.testing.dialect import DEEPSEEK, GPT_OSS, TOGETHER, Dialect
from together_async.testing.validators import check_at_least_0, check_positive


@attrs.frozen
class Model:
    """A model of the emulator.

    Args:
        id: Its name in requests.
        dialect: The shapes in which it answers.
        context_length: The most tokens of prompt and `max_tokens` together; more are refused with 403.
        input_price: US dollars per million tokens of the prompt, as `GET /models` lists it.
        output_price: US dollars per million generated tokens, likewise.
        tokens_per_second: The speed of this model, above 0; None for the server's.
        first_token_s: The seconds to this model's first token, at least 0; None for the server's.

    Raises:
        ValueError: A value is out of its range.
    """

    id: str
    dialect: Dialect = TOGETHER
    context_length: int = 131_072
    input_price: float = 0.88
    output_price: float = 0.88
    tokens_per_second: float | None = None
    first_token_s: float | None = None

    def __attrs_post_init__(self) -> None:
        check_positive("tokens_per_second", self.tokens_per_second)
        check_at_least_0("first_token_s", self.first_token_s or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Returns the model's entry in the response to `GET /models`."""
        organization, _, name = self.id.rpartition("/")
        return {
            "id": self.id,
            "object": "model",
            "created": 0,
            "type": "chat",
            "display_name": name,
            "organization": organization,
            "link": "",
            "license": "",
            "context_length": self.context_length,
            "pricing": {
                "hourly": 0,
                "input": self.input_price,
                "output": self.output_price,
                "base": 0,
                "finetune": 0,
            },
        }


MODELS: tuple[Model, ...] = (
    Model("meta-llama/Llama-3.3-70B-Instruct-Turbo"),
    Model("openai/gpt-oss-20b", GPT_OSS, input_price=0.05, output_price=0.2),
    Model("deepseek-ai/DeepSeek-R1", DEEPSEEK, context_length=163_840, input_price=3.0, output_price=7.0),
)
"""The emulator's models unless given others; it then answers every other name too, in Together's shape."""
