"""How processes of one run prove to each other that they know its token, without saying it.

The token is made with the plan of a launch and travels to the workers through Ray. A proof is an HMAC-SHA256 over what
it is for, so that none can be used in another place, another view or the other direction.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct

import torch
import torch.distributed as dist

NONCE = 16
"""Bytes that were never used before, against proofs that somebody has overheard."""
PROOF = hashlib.sha256().digest_size


def nonce() -> bytes:
    """Fresh random bytes."""
    return secrets.token_bytes(NONCE)


def proof(token: bytes, *about: bytes | int | str) -> bytes:
    """Shows whoever knows `token`, and nobody else anything, that its maker knows it."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in about]
    return hmac.digest(token, b"".join(struct.pack("!I", len(part)) + part for part in parts), "sha256")


def holds(token: bytes, said: bytes, *about: bytes | int | str) -> bool:
    """Whether `said` is the proof about this."""
    return hmac.compare_digest(said, proof(token, *about))


def prove_to_peers(group: dist.ProcessGroup, token: bytes, *about: bytes | int | str) -> None:
    """Every two members of `group` prove to each other what they know (collective).

    Gloo takes whoever dials first for the peer that it waits for. So before anything is sent in a group, each pair
    shows that it leads to a process of this run. Raises DistError if one does not.
    """
    rank, size = group.rank(), group.size()
    peers = [(rank + i) % size for i in range(1, size)]
    mine = [_tensor(proof(token, "pair", *about, size, rank, peer)) for peer in peers]
    theirs = [torch.zeros(PROOF, dtype=torch.uint8) for _ in peers]
    flights = [dist.irecv(got, group=group, group_src=peer) for got, peer in zip(theirs, peers, strict=True)]
    flights += [dist.isend(out, group=group, group_dst=peer) for out, peer in zip(mine, peers, strict=True)]
    for flight in flights:
        assert flight is not None, "this process is a member"
        flight.wait()
    for got, peer in zip(theirs, peers, strict=True):
        if not holds(token, got.numpy().tobytes(), "pair", *about, size, peer, rank):
            raise dist.DistBackendError(
                f"who answers as rank {peer} does not know the token of this run: something else in the network has "
                f"taken its place; see docs/security.md"
            )


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
