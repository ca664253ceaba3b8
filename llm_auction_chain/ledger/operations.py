"""The rules of booking: holds, charges, voids, cancellations, reversals, deposits and withdrawals."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from llm_auction_chain.errors import ChargeConflictError, CoverError, DeliveredError
from llm_auction_chain.ledger.arguments import checked_time
from llm_auction_chain.ledger.chain import BookingRow, Line, evidence_of, key_of, request_of
from llm_auction_chain.ledger.queries import charge_record, due, reply_of
from llm_auction_chain.ledger.records import Delivered
from llm_auction_chain.ledger.transaction import AuctionRow, Booked, Operation, Reads, Writer, by_key, units_of
from llm_auction_chain.money import in_millionths
from llm_auction_chain.validators import refuse

REPEAT = "repeat:"  # begins the receipt of a call that delivers what another has delivered
_CONFLICTS = {
    "voided": "was voided",
    "expired": "has expired",
    "cancelled": "was cancelled",
    "reversed": "was charged and reversed",
    "held": "has a hold of something else",
}


def reads(group: Sequence[Operation]) -> Reads:
    """Return what the holds and charges of a group need."""
    calls = [(verb, *args) for verb, args, _ in group if verb in (hold, charge)]
    return Reads(
        auctions=[auction_id for _, auction_id, *_ in calls],
        accounts=[(owner, currency) for _, _, amounts, currency, *_ in calls for owner in amounts],
        held=list(dict.fromkeys(auction_id for verb, auction_id, *_ in calls if verb is charge)),
    )


def hold(
    writer: Writer, auction_id: str, most: Mapping[str, int], currency: str, hold_for: timedelta, repeat: str
) -> tuple[Booked, str, Delivered | None]:
    """Hold the amounts that accounts cover; return the booking, the auction's nonce, and what it delivered already.

    `repeat` is the receipt under which this call delivers that, too.
    """
    request = request_of("hold", auction_id, currency, most)
    auction = writer.auction(auction_id, currency)
    if auction.state:
        earlier = None if auction.hold_seq is None else writer.of_seq(auction.hold_seq)
        _check_open(writer, auction)
        if earlier and auction.state == "charged" and (delivered := _delivered(writer, auction, repeat)):
            return earlier, auction.nonce, delivered
        if auction.state != "voided" or earlier is not None:  # else it was voided before its first hold
            if earlier is None or earlier.row.request != request:
                raise _conflict(writer, auction)
            if auction.state in ("held", "charged"):
                return earlier, auction.nonce, None
    scale = writer.scale(currency)
    units = {owner: amount for owner, (amount, _) in units_of(most, scale).items()}
    covered = writer.covered(units, currency, scale)
    until = checked_time("The end of the hold", writer.now, hold_for)
    nonce = auction.nonce or secrets.token_hex(32)
    auction = auction._replace(currency=currency)  # one that was voided before its first hold has none yet
    number = auction.holds and auction.holds + 1
    row = _row("hold", auction, scale, number, request=request, note=until, evidence=evidence_of(nonce))
    booking = writer.append(row, [Line(owner, 0, amount, 0) for owner, amount in covered.items()])
    auction = auction._replace(hold_seq=booking.row.seq, close_seq=None, holds=auction.holds + 1)
    writer.set_auction(auction, state="held", expires_at=until, nonce=nonce)
    return booking, nonce, None


def charge(
    writer: Writer,
    auction_id: str,
    amounts: Mapping[str, int],
    currency: str,
    reply: str,
    receipt: tuple[str, str],
    message: str,
    views: str,
) -> Booked:
    """Charge an auction once, out of its hold where it has one.

    `receipt` is a digest, and a text if it is kept; `message` is the reply if that is kept; `views` is a root.
    """
    digest, body = receipt
    request = request_of("charge", auction_id, currency, amounts, reply)
    auction = writer.auction(auction_id, currency)
    if auction.state == "charged" and auction.close_seq is not None:
        _check_open(writer, auction)
        earlier = writer.of_seq(auction.close_seq)
        if earlier.row.request == request:
            shares = writer.shares(auction_id)
            if digest not in _delivering(shares):
                _share(writer, auction, shares, "repeat", digest)
            return earlier
    if auction.state not in ("", "held", "expired") or auction.currency != currency:
        raise _conflict(writer, auction)
    scale = writer.scale(currency)
    units = units_of(amounts, scale)
    held = {}
    if auction.hold_seq is not None:
        held = {line.owner: line.held for line in writer.lines([auction.hold_seq])[auction.hold_seq]}
        _check_held(auction_id, units, held)
    if auction.state != "held":
        # after expiry the whole hold must be covered again, so that cover does not depend on the reports
        needed = held or {owner: amount for owner, (amount, _) in units.items()}
        covered = writer.covered(needed, currency, scale)
        if short := [owner for owner, amount in needed.items() if amount > 0 and owner not in covered]:
            message = f"The accounts of {short} do not cover the charge of auction {auction_id!r}."
            raise CoverError(f"{message} Ask for a deposit first.")
        held = {}
    lines = []
    for owner in {**units, **held}:
        amount, residual = units.get(owner, (0, 0))
        lines.append(Line(owner, -amount, -held.get(owner, 0), -residual))
    row = _row(
        "charge", auction, scale, request=request, receipt=digest, evidence=evidence_of(body, message), views=views
    )
    booking = writer.append(row, lines)
    writer.set_auction(auction, state="charged", close_seq=booking.row.seq)
    if body or message:
        writer.keep(auction_id, digest, body, message)
    return booking


def _row(kind: str, auction: AuctionRow, scale: int, number: int = 0, **texts: Any) -> BookingRow:
    """Return a booking of an auction, which has no place in the chain yet."""
    name, currency = auction.auction_id, auction.currency
    key = key_of(kind, name, number=number)
    return BookingRow(key=key, kind=kind, auction_id=name, currency=currency, scale=scale, **texts)


def _check_held(auction_id: str, units: Mapping[str, tuple[int, int]], held: Mapping[str, int]) -> None:
    if strangers := [owner for owner in units if owner not in held]:
        raise CoverError(f"Auction {auction_id!r} holds nothing of {strangers}. Leave owners without cover out of it.")
    if above := [owner for owner, (amount, _) in units.items() if abs(amount) > held[owner]]:
        raise CoverError(f"Auction {auction_id!r} holds less of {above} than the charge. Charge at most the hold.")


def _check_open(writer: Writer, auction: AuctionRow) -> None:
    """Raise unless the same hold or charge may be repeated."""
    if auction.state in ("cancelled", "reversed"):
        raise _conflict(writer, auction)
    if auction.state == "charged" and writer.reversals(auction.auction_id):
        raise ChargeConflictError(f"Auction {auction.auction_id!r} was charged, and a part of it reversed.")


def _conflict(writer: Writer, auction: AuctionRow) -> ChargeConflictError:
    name = auction.auction_id
    if auction.state == "charged" and auction.close_seq is not None:
        return DeliveredError(
            f"Auction {name!r} was charged and its reply delivered; this call came to another outcome. Ask under a new "
            "key, or keep replies with Ledger(keep_replies=True): then a repeated call returns the first reply.",
            charge_record(writer.of_seq(auction.close_seq)),
        )
    return ChargeConflictError(f"Auction {name!r} {_CONFLICTS[auction.state]}. Give each auction an id of its own.")


def _delivered(writer: Writer, auction: AuctionRow, receipt: str) -> Delivered | None:
    """Return the kept outcome of a charged auction, and book that another call delivers it too."""
    if auction.close_seq is None or not (reply := reply_of(writer.connection, auction.auction_id)):
        return None
    delivered = Delivered(charge=charge_record(writer.of_seq(auction.close_seq)), reply=reply, receipt=receipt)
    shares = writer.shares(auction.auction_id)
    if receipt not in _delivering(shares):
        _share(writer, auction, shares, "repeat", receipt)
    return delivered


def _delivering(shares: list[tuple[str, str]]) -> set[str]:
    """Return the receipts of the calls that deliver on a charge."""
    receipts: set[str] = set()
    for kind, receipt in shares:
        (receipts.discard if kind == "failure" else receipts.add)(receipt)
    return receipts


def _share(
    writer: Writer, auction: AuctionRow, shares: list[tuple[str, str]], kind: str, receipt: str, reason: str = ""
) -> None:
    """Book that another call delivers on a charge too (`repeat`), or that one of several calls failed (`failure`)."""
    before = sum(earlier == kind for earlier, _ in shares)
    scale, number = writer.scale(auction.currency), before and before + 1
    writer.append(_row(kind, auction, scale, number, receipt=receipt, note=reason), [])


def void(writer: Writer, auction_id: str, reason: str) -> None:
    """Close an auction without a charge and release its hold."""
    auction = writer.auction(auction_id)
    if auction.state in ("charged", "reversed"):
        raise ChargeConflictError(f"Auction {auction_id!r} was charged and cannot be voided. Reverse it.")
    if auction.state in ("", "held", "expired"):
        _close(writer, [auction], "void", "voided", reason)


def cancel(writer: Writer, auction_id: str, reason: str, receipt: str | None) -> None:
    """Close an auction for good. A charge stands as long as another call delivers on it."""
    auction = writer.auction(auction_id)
    if auction.state == "charged":
        shares = writer.shares(auction_id)
        delivering = _delivering(shares)
        if receipt is None or delivering == {receipt}:
            reverse(writer, auction_id, None, reason)
        elif receipt in delivering:
            _share(writer, auction, shares, "failure", receipt, reason)
    elif auction.state not in ("cancelled", "reversed") and not (receipt or "").startswith(REPEAT):
        _close(writer, [auction], "cancellation", "cancelled", reason)


def expire(writer: Writer, now: str) -> list[str]:
    """Release the holds of a page of the auctions whose hold has expired, and return their ids."""
    auctions = due(writer.connection, now)
    _close(writer, auctions, "expiry", "expired", "")
    return [auction.auction_id for auction in auctions]


def _close(writer: Writer, auctions: list[AuctionRow], kind: str, state: str, reason: str) -> None:
    """Close auctions without a charge, and release their holds."""
    held = writer.lines(one.hold_seq for one in auctions if one.state == "held" and one.hold_seq)
    for currency in {auction.currency for auction in auctions}:
        holds = [held.get(auction.hold_seq or 0, []) for auction in auctions if auction.currency == currency]
        writer.load({line.owner for lines in holds for line in lines}, currency)
    for auction in auctions:
        scale = writer.scale(auction.currency) if auction.hold_seq else 0
        row = _row(kind, auction, scale, auction.holds, note=reason)
        lines = held.get(auction.hold_seq or 0, [])
        booking = writer.append(row, [Line(line.owner, 0, -line.held, 0) for line in lines])
        writer.set_auction(auction, state=state, close_seq=booking.row.seq)


def reverse(writer: Writer, auction_id: str, owner: str | None, reason: str) -> Booked:
    """Give back the rest of a charge, or one owner's line of it; each line once."""
    auction = writer.auction(auction_id)
    if auction.close_seq is None or auction.state not in ("charged", "reversed"):
        raise ChargeConflictError(f"Auction {auction_id!r} has not been charged: there is nothing to reverse.")
    charged = writer.of_seq(auction.close_seq)
    earlier = writer.reversals(auction_id)
    reversals = {line.owner: booking for booking in reversed(earlier) for line in booking.lines}
    left = [line for line in charged.lines if line.owner not in reversals]
    if owner is not None and owner in reversals:
        return reversals[owner]
    if owner is None and earlier and not left:
        return next((booking for booking in earlier if booking.row.key.endswith(":*")), earlier[-1])
    lines = [line for line in left if owner in (None, line.owner)]
    if owner is not None and not lines:
        raise ChargeConflictError(f"Auction {auction_id!r} charged nothing to {owner!r}: there is nothing to reverse.")
    key = f"{key_of('reversal', auction_id)}:*" if owner is None else key_of("reversal", auction_id, owner)
    row = _row("reversal", auction, charged.row.scale, note=reason)._replace(key=key)
    booking = writer.append(row, [Line(line.owner, -line.amount, 0, -line.residual) for line in lines])
    if len(lines) == len(left):
        writer.set_auction(auction, state="reversed")
    return booking


def move_cash(writer: Writer, kind: str, owner: str, amount: Decimal, currency: str, key: str, note: str) -> Booked:
    """Book a `deposit` or a `withdrawal`, once per key."""
    millionths = {owner: in_millionths(amount)}
    request = request_of(kind, key, currency, millionths)
    earlier = by_key(writer.connection, key_of(kind, key))
    if earlier is not None:
        if earlier.row.request != request:
            raise ChargeConflictError(f"The {kind} {key!r} was made with something else. Give another key.")
        return earlier
    scale = writer.scale(currency)
    units, residual = units_of(millionths, scale)[owner]
    if residual:
        raise refuse("amount", f"an amount of at most {scale} decimals, as the currency has", str(amount))
    writer.load([owner], currency)
    if kind == "withdrawal":
        if writer.free(owner, currency) < units:
            raise CoverError(
                f"The account of {owner!r} does not cover {amount}. Withdraw what is neither held nor owed."
            )
        units = -units
    row = BookingRow(key=key_of(kind, key), kind=kind, currency=currency, scale=scale, request=request, note=note)
    return writer.append(row, [Line(owner, units, 0, 0)])
