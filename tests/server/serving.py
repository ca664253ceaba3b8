"""A server on a socket of the loopback, and a chat model for it."""

import threading
from contextlib import contextmanager

import uvicorn
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool


class Seer(BaseChatModel):
    """A model that sees pictures, calls the first of its tools once, and counts tokens."""

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, tools=(), **kwargs):
        last = messages[-1]
        text = f"The tool says {last.text}." if isinstance(last, ToolMessage) else f"I see {_pictures(last)} pictures."
        called = tools[:1] if not isinstance(last, ToolMessage) else ()
        calls = [{"name": tool["function"]["name"], "args": {"location": "Bern"}, "id": "call_1"} for tool in called]
        usage = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
        reply = AIMessage("" if calls else text, tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=reply)])

    @property
    def _llm_type(self):
        return "seer"


def _pictures(message):
    return sum(isinstance(part, dict) and part["type"] == "image_url" for part in message.content)


@contextmanager
def served(app):
    """Yield the URL of an app."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
