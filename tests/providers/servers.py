"""One server on the loopback that answers as the providers do, each in its wire format, and models that call it."""

import itertools
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READ, WRITTEN = 10, 5  # tokens of every prompt, and of every reply
TEXTS = ("Buy at TuneTown today.", "StringSchool gives lessons.", "Practise daily.", "Ask a friend, or TuneTown.")


@dataclass(frozen=True)
class Said:
    """One reply, in no provider's words.

    Attributes:
        text: what it says.
        thinking: what it thought before; empty is thought that the provider keeps to itself, None is none.
        calls: name and arguments of each tool that it calls.
        refusal: why it says nothing.
        cut: whether it reached the limit of tokens.
        filtered: whether a content filter took it.
        counted: whether the provider tells its tokens.
        extra: further fields of an OpenAI message.
    """

    text: str = ""
    thinking: str | None = None
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    refusal: str = ""
    cut: bool = False
    filtered: bool = False
    counted: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def end(self, ended: str, called: str, cut: str, filtered: str) -> str:
        """Return the provider's word for how it ended."""
        return filtered if self.filtered else cut if self.cut else called if self.calls else ended


@dataclass(frozen=True)
class Failed:
    """An answer that is an error."""

    status: int
    message: str = "slow down"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BrokenOff:
    """A stream that ends in the middle."""

    said: Said


Answer = Said | Failed | BrokenOff


class Servers(ThreadingHTTPServer):
    """All providers.

    Attributes:
        say: from the number of a reply, from 0, and the request's body to the answer.
        asked: path, body and headers of every request, in the order in which they came.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.say: Callable[[int, dict[str, Any]], Answer] = lambda k, body: Said(TEXTS[k % 4])
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.numbers, self.ids, self.lock = itertools.count(), itertools.count(1), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.asked]

    def restart(self, say: Callable[[int, dict[str, Any]], Answer]) -> None:
        """Forget what was asked, and answer with `say` from now on."""
        self.say, self.numbers = say, itertools.count()
        self.asked.clear()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the one before to be acknowledged
    server: Servers

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, wire = self.server, WIRES[self.path.split("/")[1]]
        with server.lock:
            server.asked.append((self.path, body, dict(self.headers)))
            numbers = list(itertools.islice(server.numbers, body.get("n") or 1))
        answers = [server.say(k, body) for k in numbers]
        broken = isinstance(answers[0], BrokenOff)
        if isinstance(answers[0], Failed):
            failed = answers[0]
            self.send(failed.status, json.dumps(wire.error(failed)), **failed.headers)
            return
        said = [one.said if isinstance(one, BrokenOff) else one for one in answers]
        kind, lines = wire.answer(self, body, said)
        text = "".join(lines[: max(1, len(lines) // 2)] if broken else lines)
        self.send(200, text, kind=kind, more=1000 if broken else 0)

    def send(self, status: int, text: str, *, kind: str = "application/json", more: int = 0, **headers: str) -> None:
        sent = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent) + more))
        self.send_header("Connection", "close")  # the clients would keep it open beyond the test
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def new(self, prefix: str) -> str:
        """Return an id that nothing else has."""
        return f"{prefix}{next(self.server.ids)}"


Lines = tuple[str, list[str]]  # media type, and the lines of an answer
JSON, SSE = "application/json", "text/event-stream"


def _events(events: list[dict[str, Any]]) -> Lines:
    return SSE, [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


def _words(text: str) -> list[str]:
    return [f"{word} " for word in text.split(" ")[:-1]] + text.split(" ")[-1:]


class Chat:
    """Chat completions: OpenAI, Mistral and Groq."""

    @staticmethod
    def error(failed: Failed) -> dict[str, Any]:
        return {"error": {"message": failed.message, "type": "error", "code": None}}

    @staticmethod
    def answer(handler: Handler, body: dict[str, Any], said: list[Said]) -> Lines:
        ends = [one.end("stop", "tool_calls", "length", "content_filter") for one in said]
        usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN * len(said)}
        usage["total_tokens"] = sum(usage.values())
        common = {"id": handler.new("chatcmpl-"), "created": 1, "model": body["model"]}
        messages = [Chat.message(handler, one) for one in said]
        if not body.get("stream"):
            choices = [
                {"index": k, "message": message, "finish_reason": end, "logprobs": None}
                for k, (message, end) in enumerate(zip(messages, ends, strict=True))
            ]
            told = {"usage": usage} if said[0].counted else {}
            return JSON, [json.dumps({**common, "object": "chat.completion", "choices": choices, **told})]
        common["object"] = "chat.completion.chunk"
        calls = [{**call, "index": k} for k, call in enumerate(messages[0].pop("tool_calls", []))]
        deltas = [{**messages[0], "content": ""}, *({"content": word} for word in _words(said[0].text))]
        deltas += [{"tool_calls": [call]} for call in calls]
        lines = [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        lines.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": ends[0]}]})
        if said[0].counted:
            lines.append({**common, "choices": [], "usage": usage})
            if not handler.path.startswith("/openai"):
                lines[-1]["choices"] = [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]
        return SSE, [f"data: {json.dumps(line)}\n\n" for line in lines] + ["data: [DONE]\n\n"]

    @staticmethod
    def message(handler: Handler, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.text or None, **said.extra}
        if said.refusal:
            message["refusal"] = said.refusal
        if said.thinking and not handler.path.startswith("/openai"):
            message["reasoning"] = said.thinking
        if said.calls:
            message["tool_calls"] = [
                {
                    "id": handler.new("call"),
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps(args)},
                }
                for name, args in said.calls
            ]
        return message


class Responses:
    """OpenAI's Responses API."""

    error = Chat.error

    @staticmethod
    def answer(handler: Handler, body: dict[str, Any], said: list[Said]) -> Lines:
        (one,) = said
        items: list[dict[str, Any]] = []
        if one.thinking is not None:
            summary = [{"type": "summary_text", "text": one.thinking}] if one.thinking else []
            sealed = {"encrypted_content": handler.new("sealed")}
            items.append({"type": "reasoning", "id": handler.new("rs_"), "summary": summary, **sealed})
        if one.text or one.refusal:
            part = {"type": "output_text", "text": one.text, "annotations": []}
            part = {"type": "refusal", "refusal": one.refusal} if one.refusal else part
            message = {"id": handler.new("msg_"), "role": "assistant", "status": "completed", "content": [part]}
            items.append({"type": "message", **message})
        items += [
            {
                "type": "function_call", "id": handler.new("fc_"), "call_id": handler.new("call_"), "name": name,
                "arguments": json.dumps(args), "status": "completed",
            }
            for name, args in one.calls
        ]  # fmt: skip
        why = one.end("", "", "max_output_tokens", "content_filter")
        details = {"cached_tokens": 4}, {"reasoning_tokens": 3}
        usage = {"input_tokens": READ, "output_tokens": WRITTEN, "total_tokens": READ + WRITTEN}
        usage |= {"input_tokens_details": details[0], "output_tokens_details": details[1]}
        response = {
            "id": handler.new("resp_"), "object": "response", "created_at": 1, "model": body["model"], "output": items,
            "status": "incomplete" if why else "completed", "incomplete_details": {"reason": why} if why else None,
            "usage": usage if one.counted else None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "error": None, "instructions": None, "metadata": {},
            "text": body.get("text") or {"format": {"type": "text"}},
        }  # fmt: skip
        if not body.get("stream"):
            return JSON, [json.dumps(response)]
        begun = {**response, "output": [], "status": "in_progress", "usage": None}
        events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
        for k, item in enumerate(items):
            place = {"output_index": k}
            empty = {"content": []} if item["type"] == "message" else {}
            events.append({"type": "response.output_item.added", **place, "item": {**item, **empty}})
            if item["type"] == "message":
                place |= {"item_id": item["id"], "content_index": 0}
                events.append({"type": "response.content_part.added", **place, "part": {**part, "text": ""}})
                events += [
                    {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
                    for word in _words(one.text)
                ]
            events.append({"type": "response.output_item.done", "output_index": k, "item": item})
        events.append({"type": "response.completed", "response": response})
        return _events([{**event, "sequence_number": k} for k, event in enumerate(events)])


class Messages:
    """Anthropic."""

    @staticmethod
    def error(failed: Failed) -> dict[str, Any]:
        kinds = {429: "rate_limit_error", 400: "invalid_request_error", 401: "authentication_error"}
        return {"type": "error", "error": {"type": kinds.get(failed.status, "api_error"), "message": failed.message}}

    @staticmethod
    def answer(handler: Handler, body: dict[str, Any], said: list[Said]) -> Lines:
        (one,) = said
        blocks: list[dict[str, Any]] = []
        if one.thinking:
            blocks.append({"type": "thinking", "thinking": one.thinking, "signature": handler.new("signature")})
        elif one.thinking is not None:
            blocks.append({"type": "redacted_thinking", "data": handler.new("sealed")})
        if one.text:
            blocks.append({"type": "text", "text": one.text})
        for name, args in one.calls:
            blocks.append({"type": "tool_use", "id": handler.new("toolu_"), "name": name, "input": args})
        end = "refusal" if one.refusal else one.end("end_turn", "tool_use", "max_tokens", "refusal")
        usage = {"input_tokens": READ, "output_tokens": WRITTEN if one.counted else 0}
        message = {
            "id": handler.new("msg_"), "type": "message", "role": "assistant", "model": body["model"],
            "content": blocks, "stop_reason": end, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if not body.get("stream"):
            return JSON, [json.dumps(message)]
        begun = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
        for k, block in enumerate(blocks):
            start, deltas = Messages.parts(block)
            events.append({"type": "content_block_start", "index": k, "content_block": start})
            events += [{"type": "content_block_delta", "index": k, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": k})
        end_of = {"delta": {"stop_reason": end, "stop_sequence": None}, "usage": {"output_tokens": WRITTEN}}
        return _events([*events, {"type": "message_delta", **end_of}, {"type": "message_stop"}])

    @staticmethod
    def parts(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the start of a block in a stream, and what follows."""
        if block["type"] == "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": word} for word in _words(block["text"])]
        if block["type"] == "thinking":
            deltas = [("thinking_delta", "thinking"), ("signature_delta", "signature")]
            start = {**block, "thinking": "", "signature": ""}
            return start, [{"type": kind, name: block[name]} for kind, name in deltas]
        if block["type"] == "tool_use":
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
            return {**block, "input": {}}, deltas
        return block, []


class Ollama:
    """Ollama, which streams unless it is asked not to."""

    @staticmethod
    def error(failed: Failed) -> dict[str, Any]:
        return {"error": failed.message}

    @staticmethod
    def answer(handler: Handler, body: dict[str, Any], said: list[Said]) -> Lines:
        (one,) = said
        message: dict[str, Any] = {"role": "assistant", "content": one.text}
        if one.thinking:
            message["thinking"] = one.thinking
        if one.calls:
            message["tool_calls"] = [{"function": {"name": name, "arguments": args}} for name, args in one.calls]
        common = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
        usage = {"prompt_eval_count": READ, "eval_count": WRITTEN} if one.counted else {}
        last = {**common, "done": True, "done_reason": one.end("stop", "stop", "length", "stop"), **usage}
        if not body.get("stream", True):
            return JSON, [json.dumps({**last, "message": message})]
        lines = [
            {**common, "message": message, "done": False},
            {**last, "message": {"role": "assistant", "content": ""}},
        ]
        return "application/x-ndjson", [f"{json.dumps(line)}\n" for line in lines]


class Gemini:
    """Google's Gemini."""

    @staticmethod
    def error(failed: Failed) -> dict[str, Any]:
        kinds = {429: "RESOURCE_EXHAUSTED", 400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED"}
        status = kinds.get(failed.status, "INTERNAL")
        return {"error": {"code": failed.status, "message": failed.message, "status": status}}

    @staticmethod
    def answer(handler: Handler, body: dict[str, Any], said: list[Said]) -> Lines:
        (one,) = said
        signed = {} if one.thinking is None else {"thoughtSignature": f"c2ln{next(handler.server.ids) % 10_000:04}"}
        parts: list[dict[str, Any]] = [{"text": one.thinking, "thought": True}] if one.thinking else []
        parts += [{"text": one.text, **signed}] if one.text else []
        parts += [{"functionCall": {"name": name, "args": args}, **signed} for name, args in one.calls]
        usage = {"promptTokenCount": READ, "candidatesTokenCount": WRITTEN, "totalTokenCount": READ + WRITTEN}
        name = handler.path.split("/models/")[1].split(":")[0]
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0}
        candidate["finishReason"] = one.end("STOP", "STOP", "MAX_TOKENS", "SAFETY")
        response: dict[str, Any] = {"modelVersion": name, "responseId": handler.new("r"), "candidates": [candidate]}
        if one.refusal:
            response |= {"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}
        if one.counted:
            response["usageMetadata"] = usage
        if "stream" not in handler.path:
            return JSON, [json.dumps(response)]
        return SSE, [f"data: {json.dumps(response)}\r\n\r\n"]


def offered(body: dict[str, Any]) -> list[str]:
    """Return the names of the tools that a request offers, in any provider's words."""
    tools = body.get("tools") or []
    tools = [one for tool in tools for one in tool.get("functionDeclarations", [tool])]
    return [tool.get("function", tool)["name"] for tool in tools]


WIRES: dict[str, Any] = {
    "openai": Chat, "mistral": Chat, "groq": Chat, "responses": Responses, "anthropic": Messages, "ollama": Ollama,
    "gemini": Gemini,
}  # fmt: skip


def openai(url: str, **settings: Any) -> Any:
    from langchain_openai import ChatOpenAI

    own = {"model": "gpt-4o-mini", "base_url": f"{url}/openai/v1", "use_responses_api": False, "max_retries": 0}
    return ChatOpenAI(api_key="none", **{**own, **settings})


def responses(url: str, **settings: Any) -> Any:
    own = {"model": "gpt-5-mini", "base_url": f"{url}/responses/v1", "use_responses_api": True}
    return openai(url, **{**own, "output_version": "responses/v1", **settings})


def anthropic(url: str, **settings: Any) -> Any:
    from langchain_anthropic import ChatAnthropic

    own = {"model": "claude-sonnet-4-5", "base_url": f"{url}/anthropic", "max_retries": 0, "max_tokens": 500}
    return ChatAnthropic(api_key="none", **{**own, **settings})


def ollama(url: str, **settings: Any) -> Any:
    from langchain_ollama import ChatOllama

    return ChatOllama(**{"model": "llama3", "base_url": f"{url}/ollama", **settings})


def mistral(url: str, **settings: Any) -> Any:
    from langchain_mistralai import ChatMistralAI

    own = {"model": "mistral-small", "endpoint": f"{url}/mistral/v1", "max_retries": 0}
    return ChatMistralAI(api_key="none", **{**own, **settings})


def groq(url: str, **settings: Any) -> Any:
    from langchain_groq import ChatGroq

    own = {"model": "llama-3.1-8b-instant", "base_url": f"{url}/groq", "max_retries": 0}
    return ChatGroq(api_key="none", **{**own, **settings})


def gemini(url: str, **settings: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    own = {"model": "gemini-2.5-flash", "base_url": f"{url}/gemini", "max_retries": 1, "google_api_key": "none"}
    return ChatGoogleGenerativeAI(**{**own, **settings})


MODELS = {model.__name__: model for model in (openai, responses, anthropic, ollama, mistral, groq, gemini)}
THINKING = {
    "responses": {}, "gemini": {"include_thoughts": True}, "ollama": {"reasoning": True}, "groq": {},
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 3000},
}  # fmt: skip


@contextmanager
def serve() -> Any:
    """Serve until the block ends."""
    with Servers() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
