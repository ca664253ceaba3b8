"""A whole reply as the one chunk of a stream."""

import json

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk

__all__ = ["chunk_of"]


def chunk_of(message: BaseMessage) -> AIMessageChunk:
    """Return a whole message as the last chunk of a stream.

    Calls that could not be read are added when the chunk is made: streamed, LangChain would mend them into valid ones.
    """
    if not isinstance(message, AIMessage):
        raise TypeError(f"{type(message).__name__} is no reply.")
    chunk = AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        id=message.id,
        name=message.name,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=[
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(message.tool_calls)
        ],
        chunk_position="last",
    )
    return chunk.model_copy(update={"invalid_tool_calls": message.invalid_tool_calls})
