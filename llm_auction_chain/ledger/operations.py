"""What may be booked: the laws of holds, charges, voids, reversals and money that comes and goes."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

from llm_auction_chain.errors import ChargeConflictError, CoverError
from llm_auction_chain.ledger.chain import Line, evidence_of, key_of, request_of, spell_time
from llm_auction_chain.ledger.transaction import AuctionRow, Booked, Writer, units_of

__all__ = ["cancel", "charge", "expire", "hold", "move_cash", "reverse", "void"]

_CLOSED = {
    "voided": "was voided",
    "expired": "has expired",
    "cancelled": "was cancelled",
    "reversed": "was charged and reversed",
    "charged": "was charged with something else",
    "held": "has a hold of something else",
}


def hold(
    writer: Writer, auction_id: str, most: Mapping[str, Decimal], currency: str, hold_for: timedelta
) -> tuple[Booked, str]:
    """Hold what accounts cover of the most that their owners may be charged; return it with the auction's nonce."""
    request = request_of("hold", auction_id, currency, most)
    auction = writer.auction(auction_id, most, currency) or AuctionRow(
        auction_id=auction_id, currency=currency, state=""
    )
    if auction.state:
        earlier = None if auction.hold_seq is None else writer.of_seq(auction.hold_seq)
        _check_open(writer, auction)
        if auction.state != "voided" or earlier is not None:  # else it was voided before it was held
            if earlier is None or earlier.row.request != request:
                raise _conflict(auction)
            if auction.state in ("held", "charged"):
                return earlier, auction.nonce
    scale = writer.scale(currency)
    asked = units_of(most, scale)
    writer.load(asked, currency)
    lines = [
        Line(owner, 0, amount, 0)
        for owner, (amount, _) in asked.items()
        if writer.covers(owner, currency, scale, amount)
    ]
    until = spell_time(writer.now + hold_for, "The end of the hold")
    key = key_of("hold", auction_id, *([str(auction.holds + 1)] if auction.holds else []))
    nonce = auction.nonce or secrets.token_hex(32)
    made = writer.append(
        "hold",
        key,
        lines,
        auction_id=auction_id,
        currency=currency,
        scale=scale,
        request=request,
        note=until,
        evidence=evidence_of(nonce),
    )
    holds = auction.holds + 1
    writer.set_auction(
        auction,
        currency=currency,  # one that was voided before it was held has none yet
        state="held",
        expires_at=until,
        hold_seq=made.row.seq,
        close_seq=None,
        holds=holds,
        nonce=nonce,
    )
    return made, nonce


def charge(
    writer: Writer,
    auction_id: str,
    amounts: Mapping[str, Decimal],
    currency: str,
    reply: str,
    receipt: tuple[str, str],
) -> Booked:
    """Charge an auction once, out of its hold where it has one.

    Args:
        writer: of the transaction.
        auction_id: which.
        amounts: by owner.
        currency: of the amounts.
        reply: digest of what is charged for.
        receipt: its digest, and its text, empty where it is not kept.
    """
    digest, body = receipt
    request = request_of("charge", auction_id, currency, amounts, reply)
    auction = writer.auction(auction_id, amounts, currency) or AuctionRow(
        auction_id=auction_id, currency=currency, state=""
    )
    if auction.state == "charged" and auction.close_seq is not None:
        _check_open(writer, auction)
        earlier = writer.of_seq(auction.close_seq)
        if earlier.row.request == request:
            shares = writer.shares(auction_id)
            if digest not in _delivering(shares):
                _share(writer, auction, shares, "repeat", digest)
            return earlier
    if auction.state not in ("", "held", "expired") or auction.currency != currency:
        raise _conflict(auction)
    scale = writer.scale(currency)
    asked = units_of(amounts, scale)
    held = {}
    if auction.hold_seq is not None:
        held = {line.owner: line.held for line in writer.lines_of([auction.hold_seq])[auction.hold_seq]}
        _check_held(auction_id, asked, held)
    if auction.state != "held":
        # as a new hold would be: what reports came to must not decide
        _check_cover(
            writer, auction_id, held or {owner: amount for owner, (amount, _) in asked.items()}, currency, scale
        )
        held = {}
    lines = [
        Line(owner, -asked.get(owner, (0, 0))[0], -held.get(owner, 0), -asked.get(owner, (0, 0))[1])
        for owner in {**asked, **held}
    ]
    made = writer.append(
        "charge",
        key_of("charge", auction_id),
        lines,
        auction_id=auction_id,
        currency=currency,
        scale=scale,
        request=request,
        receipt=digest,
        evidence=evidence_of(body),
    )
    writer.set_auction(auction, state="charged", close_seq=made.row.seq)
    if body:
        writer.keep_receipt(auction_id, digest, body)
    return made


def _check_held(auction_id: str, asked: Mapping[str, tuple[int, int]], held: Mapping[str, int]) -> None:
    if strangers := [owner for owner in asked if owner not in held]:
        raise CoverError(f"Auction {auction_id!r} holds nothing of {strangers}. Leave those without cover out of it.")
    if above := [owner for owner, (amount, _) in asked.items() if abs(amount) > held[owner]]:
        raise CoverError(f"Auction {auction_id!r} holds less of {above} than the charge. Charge what was held at most.")


def _check_cover(writer: Writer, auction_id: str, asked: Mapping[str, int], currency: str, scale: int) -> None:
    writer.load(asked, currency)
    short = [
        owner for owner, amount in asked.items() if amount > 0 and not writer.covers(owner, currency, scale, amount)
    ]
    if short:
        raise CoverError(
            f"The accounts of {short} do not cover the charge of auction {auction_id!r}. Ask for a deposit first."
        )


def _check_open(writer: Writer, auction: AuctionRow) -> None:
    """Raise unless an auction may be held and charged again, for the same."""
    if auction.state in ("cancelled", "reversed"):
        raise _conflict(auction)
    if auction.state == "charged" and writer.reversals(auction.auction_id):
        raise ChargeConflictError(f"Auction {auction.auction_id!r} was charged, and a part of it reversed.")


def _delivering(shares: list[tuple[str, str]]) -> set[str]:
    """Return the receipts of the calls that deliver on a charge."""
    found: set[str] = set()
    for kind, receipt in shares:
        (found.discard if kind == "failure" else found.add)(receipt)
    return found


def _share(
    writer: Writer, auction: AuctionRow, shares: list[tuple[str, str]], kind: str, receipt: str, reason: str = ""
) -> None:
    """Book that another call delivers on a charge, too (`repeat`), or that one of several failed (`failure`)."""
    before = sum(one == kind for one, _ in shares)
    writer.append(
        kind,
        key_of(kind, auction.auction_id, *([str(before + 1)] if before else [])),
        [],
        auction_id=auction.auction_id,
        currency=auction.currency,
        scale=writer.scale(auction.currency),
        receipt=receipt,
        note=reason,
    )


def void(writer: Writer, auction_id: str, reason: str) -> None:
    """Close an auction without a charge; hold nothing more for it."""
    auction = writer.auction(auction_id)
    if auction is not None and auction.state in ("charged", "reversed"):
        raise ChargeConflictError(f"Auction {auction_id!r} was charged and cannot be voided. Reverse it.")
    if auction is None or auction.state in ("held", "expired"):
        _close(writer, auction or AuctionRow(auction_id=auction_id, currency="", state=""), "void", "voided", reason)


def cancel(writer: Writer, auction_id: str, reason: str, receipt: str | None) -> None:
    """Close an auction for good, whatever became of it; a charge stands as long as a call delivers on it."""
    auction = writer.auction(auction_id) or AuctionRow(auction_id=auction_id, currency="", state="")
    if auction.state == "charged":
        shares = writer.shares(auction_id)
        delivering = _delivering(shares)
        if receipt is None or delivering == {receipt}:
            reverse(writer, auction_id, None, reason)
        elif receipt in delivering:
            _share(writer, auction, shares, "failure", receipt, reason)
    elif auction.state not in ("cancelled", "reversed"):
        _close(writer, auction, "cancellation", "cancelled", reason)


def expire(writer: Writer, auctions: list[AuctionRow]) -> list[str]:
    """Release holds whose time is over, and return their auctions."""
    held = writer.lines_of([auction.hold_seq for auction in auctions if auction.hold_seq is not None])
    currencies = {auction.currency for auction in auctions}
    for currency in currencies:
        owners = {
            line.owner for one in auctions if one.currency == currency for line in held.get(one.hold_seq or 0, ())
        }
        writer.load(owners, currency)
    for auction in auctions:
        _close(writer, auction, "expiry", "expired", "", held.get(auction.hold_seq or 0))
    return [auction.auction_id for auction in auctions]


def _close(
    writer: Writer, auction: AuctionRow, kind: str, state: str, reason: str, held: list[Line] | None = None
) -> None:
    scale, release = 0, held or []
    if auction.state == "held" and auction.hold_seq is not None and held is None:
        release = writer.lines_of([auction.hold_seq])[auction.hold_seq]
    if auction.hold_seq is not None:
        scale = writer.scale(auction.currency)
    key = key_of(kind, auction.auction_id, *([str(auction.holds)] if auction.holds else []))
    lines = [Line(line.owner, 0, -line.held, 0) for line in release]
    made = writer.append(
        kind, key, lines, auction_id=auction.auction_id, currency=auction.currency, scale=scale, note=reason
    )
    writer.set_auction(auction, state=state, close_seq=made.row.seq)


def reverse(writer: Writer, auction_id: str, owner: str | None, reason: str) -> Booked:
    """Give back a charge, or what is left of it, or one owner's line of it; each line once."""
    auction = writer.auction(auction_id)
    if auction is None or auction.close_seq is None or auction.state not in ("charged", "reversed"):
        raise ChargeConflictError(f"Auction {auction_id!r} has not been charged: there is nothing to reverse.")
    charged = writer.of_seq(auction.close_seq)
    earlier = writer.reversals(auction_id)
    done = {line.owner: one for one in reversed(earlier) for line in one.lines}
    left = [line for line in charged.lines if line.owner not in done]
    if owner is not None and owner in done:
        return done[owner]
    if owner is None and earlier and not left:
        return next((one for one in earlier if one.row.key.endswith(":*")), earlier[-1])
    lines = [line for line in left if owner in (None, line.owner)]
    if owner is not None and not lines:
        raise ChargeConflictError(f"Auction {auction_id!r} charged nothing to {owner!r}: there is nothing to reverse.")
    made = writer.append(
        "reversal",
        f"{key_of('reversal', auction_id)}:*" if owner is None else key_of("reversal", auction_id, owner),
        [Line(line.owner, -line.amount, 0, -line.residual) for line in lines],
        auction_id=auction_id,
        currency=auction.currency,
        scale=charged.row.scale,
        note=reason,
    )
    if len(lines) == len(left):
        writer.set_auction(auction, state="reversed")
    return made


def move_cash(writer: Writer, kind: str, owner: str, amount: Decimal, currency: str, key: str, note: str) -> Booked:
    """Book a `deposit` or a `withdrawal`, once per key."""
    request = request_of(kind, key, currency, {owner: amount})
    earlier = writer.of_key(key_of(kind, key))
    if earlier is not None:
        if earlier.row.request != request:
            raise ChargeConflictError(f"The {kind} {key!r} was made with something else. Give another key.")
        return earlier
    scale = writer.scale(currency)
    moved = units_of({owner: amount}, scale, exact=True)[owner][0]
    writer.load([owner], currency)
    if kind == "withdrawal":
        if writer.free(owner, currency) < moved:
            raise CoverError(
                f"The account of {owner!r} does not cover {amount}. Withdraw what is neither held nor owed."
            )
        moved = -moved
    line = Line(owner, moved, 0, 0)
    return writer.append(kind, key_of(kind, key), [line], currency=currency, scale=scale, request=request, note=note)


def _conflict(auction: AuctionRow) -> ChargeConflictError:
    return ChargeConflictError(
        f"Auction {auction.auction_id!r} {_CLOSED[auction.state]}. Give each auction an id of its own."
    )
