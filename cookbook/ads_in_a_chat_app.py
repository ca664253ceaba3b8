"""A chat app with sponsored replies: FastAPI, a ledger in SQLite, and statements for advertisers.

Needs: pip install 'llm-auction-chain[local,ledger,cli]' fastapi uvicorn. The tutorial "Ads in a chat app" explains it.
"""

import json
import os
import re
from typing import Annotated, Literal

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from llm_auction_chain import AuctionRunnable, Billing, ChatTransformers, Ledger, load_agents, public_reply

agents = load_agents(os.environ.get("AGENTS"))
ledger = Ledger(os.environ.get("LLM_AUCTION_LEDGER", "sqlite:///llm_auction.db"), keep_replies=True)
for agent in agents:
    ledger.deposit(agent.payer, 1000, currency="cent", key=f"first deposit of {agent.payer}")

auction = AuctionRunnable(
    model=os.environ.get("CHAT_MODEL") or ChatTransformers(temperature=0.7, max_tokens=32),
    agents=agents,
    n_candidates=8,
    tau=4.0,
    billing=Billing(ledger=ledger, currency="cent"),
    disclosure="Sponsored by {sponsors}.",
)
app = FastAPI()


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=4000)


class Question(BaseModel):
    """The conversation so far, the user's newest message last."""

    messages: list[Message] = Field(min_length=1, max_length=40)
    stream: bool = False


def as_events(text, answer):
    for word in re.findall(r"\s*\S+", text):
        yield f"data: {json.dumps({'text': word})}\n\n"
    yield f"data: {json.dumps(answer)}\n\n"


@app.post("/chat")
async def chat(question: Question, idempotency_key: Annotated[str, Header()]):
    prompt = [("system", "Answer in one or two short sentences.")]
    prompt += [(message.role, message.content) for message in question.messages]
    reply = public_reply(await auction.ainvoke(prompt, {"configurable": {"idempotency_key": idempotency_key}}))
    answer = reply.response_metadata["auction"]
    if question.stream:
        return StreamingResponse(as_events(reply.text, answer), media_type="text/event-stream")
    return {"text": reply.text, **answer}


TOKENS = {f"secret-{agent.payer}": agent.payer for agent in agents}


@app.get("/statement")
def statement(authorization: Annotated[str, Header()]):
    owner = TOKENS.get(authorization.removeprefix("Bearer "))
    if owner is None:
        raise HTTPException(401)
    account = ledger.statement(owner, currency="cent")
    return {name: str(getattr(account, name)) for name in ("owner", "deposited", "charged", "closing")}


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app)
