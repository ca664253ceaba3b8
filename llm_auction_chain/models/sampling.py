"""What the chat models share: the settings of sampling, their checks, and token counts."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata
from pydantic import ConfigDict, Field
from typing_extensions import override

from llm_auction_chain.checked_model import CheckedModel
from llm_auction_chain.errors import ConfigurationError, PromptError
from llm_auction_chain.messages import as_turns, total_usage
from llm_auction_chain.validators import Check, number, optional, refuse, whole_number

__all__ = ["SAMPLER", "SamplingChatModel", "usage"]

SAMPLER = ("max_tokens", "temperature", "top_p", "top_k")
_OWN_VARIABLES = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages"}
    | {"padding", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation"}
)
# LangChain's own keywords, for tracing and routing. They do not change the reply.
_LANGCHAIN = frozenset({"ls_structured_output_format", "structured_output_format", "stream"})


def _strings(name: str, value: Any) -> list[str]:
    """Return a list of strings. A single string is a list of one."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, Sequence) or not all(isinstance(string, str) for string in strings):
        raise refuse(name, "a string or a list of strings", value)
    return list(strings)


def _template_variables(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping as JSON has it, without names that the models set themselves."""
    expected = "a mapping of a chat template's variables to JSON values, such as {'enable_thinking': False}"
    try:
        variables: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise refuse(name, expected, value) from error
    if taken := variables.keys() & _OWN_VARIABLES:
        raise refuse(name, expected, value, f"The model sets {', '.join(sorted(taken))} itself.")
    return variables


class SamplingChatModel(CheckedModel, BaseChatModel):
    """A chat model that draws `n` independent replies. `ChatTransformers` explains the fields."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid", strict=False)

    native_n: ClassVar[bool] = True
    provider: ClassVar[str]
    checks: ClassVar[Mapping[str, Check]] = {
        "n": partial(whole_number, least=1),
        "max_tokens": partial(whole_number, least=1),
        "temperature": partial(number, least=0),
        "top_p": partial(number, above=0, most=1),
        "top_k": whole_number,
        "stop": optional(_strings),
        "seed": optional(whole_number),
        "chat_template_kwargs": _template_variables,
    }

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        """Refuse tools: these models draw texts.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tools; give a model that can call them.")

    @property
    def _llm_type(self) -> str:
        return f"chat-{self.provider}"

    @property
    def _model_name(self) -> str | None:
        """The model's name in traces, as far as it is known."""
        raise NotImplementedError

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=self.provider,
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if name := kwargs.get("model") or self._model_name:
            params["ls_model_name"] = name
        if strings := self.stop if stop is None else stop:
            params["ls_stop"] = _strings("stop", strings)
        return params

    @override
    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        outputs = [output for output in llm_outputs if output]
        total = total_usage(output["token_usage"] for output in outputs)
        return {"model_name": outputs[0]["model_name"], "token_usage": total} if outputs else {}

    def _turns(self, messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
        return as_turns(messages, type(self).__name__)

    def _tokens(self, content: str | list[dict[str, str]]) -> list[int]:
        """Return the tokens of a text, or of turns up to the model's reply."""
        raise NotImplementedError

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self._tokens(text) if self.custom_get_token_ids is None else self.custom_get_token_ids(text)

    @override
    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        """Return how many tokens the model reads before its reply, by its own chat template and tokenizer.

        Messages that it cannot read, such as a part of a conversation, are counted as texts. Tools are not counted.
        """
        try:
            if self.custom_get_token_ids is None:
                return len(self._tokens(self._turns(messages)))
        except (ConfigurationError, PromptError):
            pass
        return super().get_num_tokens_from_messages(messages)

    def _settings(self, stop: list[str] | None, seed: int | None, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of sampling: the call's keywords, and the fields where these are None."""
        if unknown := kwargs.keys() - _LANGCHAIN - set(SAMPLER):
            hint = " It draws text, without tools." if unknown & {"tools", "tool_choice"} else ""
            raise ConfigurationError(
                f"{type(self).__name__} takes no keyword {', '.join(sorted(unknown))} in a call.{hint}"
            )
        settings: dict[str, Any] = {"stop": stop, "seed": seed, **{name: kwargs.get(name) for name in SAMPLER}}
        settings = {name: getattr(self, name) if value is None else value for name, value in settings.items()}
        self.checks["n"]("n", n)
        settings = {name: self.checks[name](name, value) for name, value in settings.items()}
        settings["stop"] = [string for string in settings["stop"] or () if string]
        return settings


def usage(inputs: int, outputs: int) -> UsageMetadata:
    """Return the token counts of a request."""
    return UsageMetadata(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs)
