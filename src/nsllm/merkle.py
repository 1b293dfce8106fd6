"""RFC 6962 Merkle trees: hashes, inclusion and consistency proofs, verification. Pure; SHA-256.

Source: RFC 6962 section 2.1 (tree, paths), RFC 9162 sections 2.1.3.2 and 2.1.4.2 (verification).
"""

from __future__ import annotations

import hashlib

from nsllm.ids import Digest


def leaf_hash(data: bytes) -> Digest:
    """SHA-256(0x00 ‖ data), RFC 6962 section 2.1."""
    return Digest(hashlib.sha256(b"\x00" + data).digest())
