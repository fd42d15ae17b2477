"""An audit in words and as JSON. Pure."""

from __future__ import annotations

from typing import Any

from shoal.audit.chain import Chain
from shoal.audit.epochs import shown
from shoal.audit.run import Audit

MOST = 20
"""Faults that are told one by one."""


def lines(audit: Audit) -> list[str]:
    """What people read: the verdict, then the reasons, faults first."""
    chain = audit.chain
    count = len(audit.faults)
    if audit.faults:
        verdict = f"NOT clean: {count} fault{'' if count == 1 else 's'}"
    else:
        verdict = "not proven" if audit.unproven else "clean"
    out = [f"{audit.run_id}: {verdict}"]
    out += [_line(fault.kind, fault.text) for fault in audit.faults[:MOST]]
    if count > MOST:
        out.append(_line("more", f"{count - MOST} further faults; all of them: --json"))
    if chain.last < chain.first:
        return [*out, _line("steps", "none is committed yet")]
    out.append(_line("steps", _steps(audit)))
    if chain.first > 1:
        source = f" ({audit.forked_from})" if audit.forked_from else ""
        out.append(
            _line("before", f"steps 1 to {chain.first - 1} are those of the run that this one began with{source}")
        )
    out += [_line("again", text) for text in _again(chain)]
    out += [_line("epochs", text) for text in _epochs(audit)]
    out += [_line("content", text) for text in _content(audit)]
    return out


def _line(name: str, text: str) -> str:
    return f"  {name:<9} {text}"


def _steps(audit: Audit) -> str:
    chain = audit.chain
    once = "" if any(f.kind in ("missing", "doubled", "order") for f in audit.faults) else ", each committed once"
    sizes = sorted(chain.sizes)
    members = f" of {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "") + " workers" if sizes else ""
    kinds = [(chain.changes[k], w) for k, w in (("join", "join"), ("leave", "leave"), ("loss", "loss"))]
    changes = ", ".join(f"{n} {w}{'' if n == 1 else 'es' if w == 'loss' else 's'}" for n, w in kinds if n)
    views = f"{chain.views} view{'' if chain.views == 1 else 's'}"
    return f"{chain.first} to {chain.last}{once}, in {views}{members}" + (f"; {changes}" if changes else "")


def _again(chain: Chain) -> list[str]:
    out = []
    for back in chain.rolled_back[:MOST]:
        done = min(back.last, chain.last) - back.first + 1
        what = f"step {back.first}" if back.first == back.last else f"steps {back.first} to {back.last}"
        count = back.last - back.first + 1
        fate = "and run again" if done == count else f"of which {max(0, done)} of {count} have been run again"
        out.append(f"{what} taken back ({back.reason or 'no reason told'}) {fate}")
    return out


def _epochs(audit: Audit) -> list[str]:
    epochs = audit.epochs
    if epochs is None and audit.orders:
        return [f"each source's order permutes its samples in all {audit.orders} epochs that these steps touch"]
    if epochs is None:
        return []
    low, high = epochs.to_come
    whole = f"{epochs.complete} complete, each of {epochs.samples} samples exactly once"
    if not epochs.complete:
        whole = f"none of {epochs.samples} samples is complete yet"
    rest = f"of epoch {epochs.current} positions {shown((low, high))} are to come" if low else ""
    out = ["; ".join(part for part in (whole, rest) if part)]
    if epochs.inherited:
        out.append(f"of the first one the other run used positions {shown(epochs.inherited)}")
    if audit.orders:
        out.append(f"the data order permutes the samples of all {audit.orders} epochs that these steps touch")
    return out


def _content(audit: Audit) -> list[str]:
    found = audit.content
    if audit.unproven:
        return [f"not compared: {audit.unproven}", "--no-content looks at the ledger alone"]
    if found is None:
        return []
    count = found.last - found.first + 1
    if found.last < found.first:
        return [f"no step in this range; there are {audit.chain.first} to {audit.chain.last}"]
    out = [
        f"{found.equal} of {count} steps ({found.first} to {found.last}) read again: their samples are those recorded"
    ]
    if found.unknown:
        out.append(
            f"{found.unknown} steps have no digest: a member died before it told, or an earlier release ran them"
        )
    return out


def as_json(audit: Audit) -> dict[str, Any]:
    """What machines read. Ranges of positions are [start, stop); steps and epochs count from 1, both ends included.
    `positions`: (first step, samples that each step from it on reads)."""
    chain, epochs, content = audit.chain, audit.epochs, audit.content
    spans = chain.positions.spans if chain.positions else None
    return {
        "run_id": audit.run_id,
        "clean": audit.clean,
        "faults": [{"kind": f.kind, "text": f.text, "steps": f.steps} for f in audit.faults],
        "steps": {"first": chain.first, "last": chain.last, "total": audit.total_steps, "positions": spans},
        "forked_from": audit.forked_from,
        "rolled_back": [{"first": b.first, "last": b.last, "reason": b.reason} for b in chain.rolled_back],
        "views": chain.views,
        "workers": sorted(chain.sizes),
        "changes": dict(chain.changes),
        "epochs": None
        if epochs is None
        else {
            "samples": epochs.samples,
            "complete": epochs.complete,
            "current": epochs.current,
            "to_come": epochs.to_come,
            "orders_proved": audit.orders,
        },
        "content": None
        if content is None
        else {"first": content.first, "last": content.last, "equal": content.equal, "unknown": content.unknown},
        "unproven": audit.unproven or None,
        "seconds": round(audit.seconds, 3),
    }
