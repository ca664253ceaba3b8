"""Prompts as tokens: by a model's chat template, or as lines where it has none."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_auction_chain.errors import ConfigurationError

__all__ = ["as_lines", "check_rows", "templated"]

Turns = Sequence[Mapping[str, Any]]


def templated(tokenizer: Any, turns: Turns, *, add_generation_prompt: bool, **variables: Any) -> list[int]:
    """Return a conversation's tokens by the tokenizer's chat template.

    Args:
        tokenizer: of transformers.
        turns: mappings with "role" and "content", a text. The template gets it as text, or as blocks where it reads
            these.
        add_generation_prompt: whether the assistant's next turn begins.
        **variables: more of the template's, such as `enable_thinking`.

    Raises:
        ConfigurationError: the template refuses the conversation, or leaves a part of it out.
    """
    variables["add_generation_prompt"] = add_generation_prompt
    try:
        shown = _as_read(tokenizer, turns, variables)
        return list(tokenizer.apply_chat_template(shown, tokenize=True, return_dict=False, **variables))
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"The model's chat template refuses these messages: {error}") from error


def as_lines(tokenizer: Any, turns: Turns) -> list[int]:
    """Return the tokens of lines of `role: text` up to the assistant's next, with nothing behind them.

    Some tokenizers put an end token behind every text, at which a model has nothing more to say.
    """
    text = "\n".join([*(f"{turn['role']}: {turn['content']}" for turn in turns), "assistant:"])
    whole, bare = (list(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False))
    starts = range(len(whole) - len(bare) + 1)
    return next((whole[: start + len(bare)] for start in starts if whole[start : start + len(bare)] == bare), whole)


def check_rows(tokenizer: Any, ids: Sequence[int], model: Any) -> None:
    """Raise ConfigurationError if the model has no vector for a token, at which torch would fail, or the whole GPU."""
    rows = len(model.get_input_embeddings().weight)
    if ids and max(ids) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ConfigurationError(
            f"The tokenizer writes {token!r} as number {max(ids)}, and the model knows {rows} tokens. Use the model's "
            "own tokenizer, or leave this token out."
        )


def _as_read(tokenizer: Any, turns: Turns, variables: Mapping[str, Any]) -> Turns:
    """Return the turns with their content as text, or as blocks where the template shows only these.

    A conversation of marks with the same roles shows what is left out, which real content could hide. They are
    numbers, which a template that changes the case of letters leaves as they are.
    """
    marks = [str(8_471_300_000 + k) for k in range(len(turns))]
    blocks = [False] * len(turns)
    refusals: list[Exception | None] = []
    for _ in range(2):
        shown, refusal = "", None
        try:
            marked = _with_content(turns, marks, blocks)
            shown = str(tokenizer.apply_chat_template(marked, tokenize=False, **variables))
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            refusal = error
        refusals.append(refusal)
        lost = [mark not in shown for mark in marks]
        if not any(lost):
            return _with_content(turns, [turn["content"] for turn in turns], blocks)
        blocks = lost
    if refusals[0] is not None:
        raise refusals[0]
    role = turns[lost.index(True)]["role"]
    raise ConfigurationError(f"The model's chat template leaves out what the {role} says. Use another template.")


def _with_content(turns: Turns, contents: Sequence[str], blocks: Sequence[bool]) -> list[dict[str, Any]]:
    several = zip(turns, contents, blocks, strict=True)
    return [{**turn, "content": [{"type": "text", "text": text}] if block else text} for turn, text, block in several]
