"""A chat model that asks another, as routers do."""

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGeneration, ChatResult


class Asks(BaseChatModel):
    """Asks another model, without a config: that one finds the run, and who listens, in its context."""

    asked: BaseChatModel

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self.asked.invoke(messages))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=await self.asked.ainvoke(messages))])

    @property
    def _llm_type(self):
        return "asks"
