"""A scripted chat model that can do all a provider's can, and the auction over it with the same parameters."""

import itertools
import json
import re

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableSerializable
from langchain_core.utils import secret_from_env
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, SecretStr

from llm_auction_chain import Agent, ChatAuction

JOKE = {"properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}
_numbers = itertools.count()


class ChatScripted(BaseChatModel):
    """Says, calls or fills in what it is asked for; every reply has a number, so that no two are the same."""

    model_config = ConfigDict(extra="forbid")

    model: str = "scripted-1"
    temperature: float = 1.0
    max_tokens: int = 100
    timeout: float = 60.0
    max_retries: int = 2
    stop: list[str] = []  # noqa: RUF012 - pydantic copies it
    streaming: bool = False
    api_key: SecretStr | None = Field(default_factory=secret_from_env("SCRIPTED_API_KEY", default=None))

    @classmethod
    def is_lc_serializable(cls):
        return True

    @property
    def lc_secrets(self):
        return {"api_key": "SCRIPTED_API_KEY"}

    @property
    def _llm_type(self):
        return "chat-scripted"

    @property
    def _identifying_params(self):
        return {name: getattr(self, name) for name in ("model", "temperature", "max_tokens", "timeout", "stop")}

    def bind_tools(self, tools, *, tool_choice=None, strict=None, **kwargs):
        formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        return self.bind(tools=formatted, tool_choice=tool_choice, **kwargs)

    def with_structured_output(self, schema, *, method="function_calling", strict=None):
        typed = is_basemodel_subclass(schema) if isinstance(schema, type) else False
        told = {"kwargs": {"method": method, "strict": strict}, "schema": convert_to_json_schema(schema)}
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            head = self.bind_tools([schema], tool_choice=name, strict=strict, ls_structured_output_format=told)
            parser = (
                PydanticToolsParser(tools=[schema], first_tool_only=True)
                if typed
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            asked = {"type": "json_object"} if method == "json_mode" else {"type": method, "schema": told["schema"]}
            head = self.bind(response_format=asked, ls_structured_output_format=told)
            parser = PydanticOutputParser(pydantic_object=schema) if typed else JsonOutputParser()
        return head | parser

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        text, calls, usage, metadata = self._script(messages, stop, **kwargs)
        message = AIMessage(text, tool_calls=calls, usage_metadata=usage, response_metadata=metadata)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        text, calls, usage, metadata = self._script(messages, stop, **kwargs)
        pieces = [AIMessageChunk(piece) for piece in re.findall(r"\S+\s*", text)]
        for index, call in enumerate(calls, start=1):  # text is block 0
            args = json.dumps(call["args"])
            for name, id_, part in ((call["name"], call["id"], args[:4]), (None, None, args[4:])):
                part_of_call = tool_call_chunk(name=name, args=part, id=id_, index=index)
                pieces.append(AIMessageChunk("", tool_call_chunks=[part_of_call]))
        last = AIMessageChunk("", usage_metadata=usage, response_metadata=metadata, chunk_position="last")
        for piece in (*pieces, last):
            chunk = ChatGenerationChunk(message=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk

    def _script(self, messages, stop, *, tools=(), tool_choice=None, response_format=None, model=None, stream=None):
        """Return a reply's text, its calls, its usage and its metadata."""
        number = next(_numbers)
        asked = [message for message in messages if isinstance(message, HumanMessage)][-1].text
        text, calls = f"Reply {number}. How are you?", []
        offered = [tool["function"] for tool in tools]
        if response_format:
            text = json.dumps(_filled(response_format.get("schema", JOKE), asked, number))
        elif offered and (tool_choice or messages[-1].type == "human"):
            called = next((tool for tool in offered if tool["name"] == tool_choice), offered[0])
            args = _filled(called["parameters"], asked, number)
            calls = [{"name": called["name"], "args": args, "id": f"call_{number}", "type": "tool_call"}]
        for string in self.stop if stop is None else stop:
            text = text.split(string)[0]
        details = {"input_token_details": {"audio": 1, "cache_read": 2, "cache_creation": 3},
                   "output_token_details": {"audio": 1, "reasoning": 2}}  # fmt: skip
        usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12, **details}
        return text, calls, usage, {"model_name": model or self.model, "finish_reason": "stop"}


def _filled(schema, asked, number):
    """Return arguments of a schema: numbers and quoted strings are those of the question."""
    numbers, quoted = re.findall(r"\d+", asked), re.findall(r"'([^']+)'", asked)
    whole = int(numbers[0]) if numbers else 1
    string = quoted[0] if quoted else f"something {number}"
    return {name: whole if value.get("type") == "integer" else string for name, value in schema["properties"].items()}


class Directory(RunnableSerializable):
    """Two agents; unlike a list of them, it can be serialised."""

    @classmethod
    def is_lc_serializable(cls):
        return True

    def invoke(self, input, config=None, **kwargs):
        likes_calls = Agent("calls", lambda prompt, reply: float(len(reply.tool_calls)))
        return [likes_calls, Agent("even", lambda prompt, reply: 1.0 - len(reply.text) % 2)]


class AuctionOverScripted(ChatAuction):
    """`ChatAuction` as the suites make models: from the parameters of the scripted model, which it is over."""

    def __new__(cls, *, n_candidates=3, agents=(), on_tool_calls="bypass", **inner):
        auction = {"n_candidates": n_candidates, "agents": agents, "on_tool_calls": on_tool_calls}
        return ChatAuction(model=ChatScripted(**inner), output_version=inner.get("output_version"), **auction)
