"""The embedded chain: an EVM that consensus replicates, with the network's anchor contract on it.

Each validator executes the same ordered transactions at the same header times and so arrives at the same state root,
which the next header certifies. The chain adds no trust beyond the quorum; it gives the anchor the form in which an
external chain holds it too.

Blocking; the ledger calls it through `Offload`, one call at a time, on the connection of its own file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from nsllm.consensus.certificate import Certificate
from nsllm.consensus.typed_data import word
from nsllm.consensus.validators import ValidatorSet
from nsllm.crypto import keccak256
from nsllm.governance import anchor_contract as contract
from nsllm.governance import merkle_patricia, rlp
from nsllm.governance.anchor_proof import AnchorProof
from nsllm.governance.errors import ChainError, ChainRefusal, NotAnchoredError
from nsllm.governance.evm import Evm, ExecutionResult
from nsllm.governance.evm_state import state_values
from nsllm.governance.evm_store import SqliteStore
from nsllm.governance.light_client import EpochProof
from nsllm.governance.transaction import SignedTransaction, Transaction, parse_transaction, sign_transaction
from nsllm.ids import Address, Digest, NetworkId, TimeMs, hex0x

MAX_FEE_WEI: Final = 2 * 10**9
"""Every transaction's fee cap: twice the first base fee, which only falls while blocks are less than half full."""
MAX_ANCHORS_PER_BLOCK: Final = 1
"""One certificate anchors everything below it."""


class EmbeddedChain:
    """One network's EVM chain in one SQLite file."""

    def __init__(self, store: SqliteStore, network: NetworkId, validators: ValidatorSet, chain_id: int) -> None:
        """Use `open` instead."""
        self._store = store
        self._evm = Evm(store, chain_id)
        self._made: Digest | None = None
        """State root after the newest block that this object executed: its nodes are in the file for certain."""
        self._founding = validators
        self._chain_id = chain_id
        self._relayer = contract.deployer_key(network)
        self.contract: Final = contract.contract_address(network)
        """Address of the anchor contract."""

    @classmethod
    def open(
        cls,
        connection: sqlite3.Connection,
        network: NetworkId,
        validators: ValidatorSet,
        chain_id: int,
        genesis_ms: TimeMs,
    ) -> EmbeddedChain:
        """Open the chain, or make its genesis and block 1, which holds the contract, in one transaction.

        Args:
            connection: autocommit connection of the ledger's file; an open transaction is joined.
            network: the network id.
            validators: the genesis's, whose certificates the contract accepts at first.
            chain_id: EVM chain id.
            genesis_ms: the genesis's creation time, the same for every validator.

        Raises:
            ChainError: the file holds another network's chain.
        """
        store = SqliteStore(connection)
        chain = cls(store, network, validators, chain_id)
        with store.transaction():
            if chain._evm.state_root() is None:
                chain._create(network, genesis_ms)
        if chain._slot(contract.NETWORK_ID_SLOT) != int.from_bytes(network, "big"):
            raise ChainError(
                f"the file holds no anchor contract of network {hex0x(network)}",
                hint="use the data folder that belongs to this genesis",
            )
        return chain

    def state_root(self) -> Digest:
        """EVM state root after everything executed so far."""
        root = self._evm.state_root()
        if root is None:
            raise ChainError("the file holds no EVM chain", hint="its creation was rolled back: open it again")
        return root

    def execute(self, transactions: Sequence[bytes], time_ms: TimeMs) -> ExecutionResult:
        """Execute a decided block's transactions as one EVM block; none is made if none can be executed.

        Deterministic and total: what is malformed or cannot pay is passed over and reported as failed. Joins the
        transaction that is open on the connection.

        Args:
            transactions: raw signed transactions in the block's order.
            time_ms: the header's time; the EVM's seconds follow it, but always rise.
        """
        result = self._evm.execute(transactions, time_ms)
        self._made = result.state_root
        return result

    def check(self, transactions: Sequence[bytes], following: ValidatorSet | None, time_ms: TimeMs) -> None:
        """Pass silently if honest validators may execute a proposed block's transactions. Writes nothing.

        Args:
            transactions: raw signed transactions of the block.
            following: the validators of the epoch after the one that the contract knows, if that has begun: then the
                contract must learn them before it records anything else.
            time_ms: the block's time.

        Raises:
            ChainRefusal: more than one, not exactly as `anchor_transaction` or `handover_transaction` makes it, or one
                that the contract would revert.
        """
        if len(transactions) > MAX_ANCHORS_PER_BLOCK:
            raise ChainRefusal(f"{len(transactions)} transactions, a block carries {MAX_ANCHORS_PER_BLOCK} at most")
        for raw in transactions:
            self._check_call(parse_transaction(raw), following)
            for digest, success in self._evm.rehearse([raw], time_ms).receipts:
                if not success:
                    raise ChainRefusal(f"transaction {digest.hex()} would fail: the contract refuses this call")

    def anchor_transaction(self, certificate: Certificate) -> bytes:
        """Raw signed transaction that anchors a certified header of the epoch that the contract knows."""
        data = contract.anchor_call(certificate)
        return sign_transaction(self._relayer, self._call(data, contract.anchor_gas(self._known_size())))

    def handover_transaction(self, proof: EpochProof) -> bytes:
        """Raw signed transaction that teaches the contract the next epoch's validators."""
        gas = contract.handover_gas(self._known_size(), proof.change.validators.size)
        return sign_transaction(self._relayer, self._call(contract.handover_call(proof), gas))

    def epoch(self) -> int:
        """The epoch whose validators the contract knows."""
        return self._slot(contract.EPOCH_SLOT) & (2**64 - 1)

    def anchored_head(self) -> tuple[int, Digest]:
        """Size and root of the newest anchored log; (0, zeros) before the first anchor."""
        size = self._slot(contract.HEAD_SLOT) & (2**64 - 1)
        return size, Digest(word(self._slot(contract.HEAD_LOG_ROOT_SLOT)))

    def prove_anchor(self, log_size: int, state_root: Digest | None = None) -> AnchorProof:
        """Proof of the anchor at `log_size`.

        Args:
            log_size: size in the anchored header.
            state_root: the state to prove against, the present one if None. Older ones serve as well, until
                `forget_history`.

        Raises:
            NotAnchoredError: that state has no such anchor.
            ChainError: no such state is here.
        """
        state = state_root or self.state_root()
        account, account_nodes = self._prove(state, _path(self.contract))
        storage = Digest(_account_fields(account)[2])
        value, storage_nodes = self._prove(storage, _path(contract.anchor_slot(log_size)), made=state == self._made)
        if value is None:
            raise NotAnchoredError(f"no anchor at log size {log_size}", hint="the newest is anchored_head()")
        return AnchorProof(contract=self.contract, account_nodes=account_nodes, storage_nodes=storage_nodes)

    def values(self) -> Iterator[bytes]:
        """The newest EVM header, then the state after it: each stands in the store under its keccak-256."""
        header, _ = self._evm.head()
        yield header
        try:
            yield from state_values(self.state_root(), self._store.__getitem__)
        except KeyError:
            raise ChainError(f"EVM state {hex0x(self.state_root())} is not complete in the file") from None

    def head_rows(self) -> dict[bytes, bytes]:
        """Rows of the store that say which EVM block is the last."""
        return self._evm.head()[1]

    def forget_history(self) -> int:
        """Delete all that the next block does not read: older states, headers, transactions. Returns how many rows."""
        return self._store.keep_only({*self.head_rows(), *map(keccak256, self.values())})

    def _create(self, network: NetworkId, genesis_ms: TimeMs) -> None:
        self._evm.create([self._relayer.address], genesis_ms // 1000)
        deployment = Transaction(
            chain_id=self._chain_id,
            nonce=0,
            max_priority_fee=0,
            max_fee=MAX_FEE_WEI,
            gas=contract.deployment_gas(self._founding),
            to=b"",
            value=0,
            data=contract.deployment_code(network, self._founding),
        )
        result = self._evm.execute([sign_transaction(self._relayer, deployment)], genesis_ms)
        if not all(success for _, success in result.receipts):
            raise ChainError(f"the anchor contract cannot be deployed for {self._founding.size} validators")

    def _known_size(self) -> int:
        """How many validators the contract knows."""
        return self._slot(contract.EPOCH_SLOT) >> 64 & 0xFFFF

    def _call(self, data: bytes, gas: int) -> Transaction:
        """The only transaction that a block may carry now, around any call data."""
        return Transaction(
            chain_id=self._chain_id,
            nonce=self._nonce(self._relayer.address),
            max_priority_fee=0,
            max_fee=MAX_FEE_WEI,
            gas=gas,
            to=self.contract,
            value=0,
            data=data,
        )

    def _check_call(self, signed: SignedTransaction, following: ValidatorSet | None) -> None:
        if signed.sender != self._relayer.address:
            raise ChainRefusal(f"transaction by {hex0x(signed.sender)}, the relayer is {hex0x(self._relayer.address)}")
        size, found = self._known_size(), signed.transaction
        if following is None:
            name, selector = "anchor", contract.ANCHOR_SELECTOR
            gas, limit = contract.anchor_gas(size), contract.anchor_call_limit_bytes(size)
        else:
            name, selector = "handover", contract.HANDOVER_SELECTOR
            gas = contract.handover_gas(size, following.size)
            limit = contract.handover_call_limit_bytes(size, following.size)
        wanted = self._call(found.data, gas)
        if found.to != wanted.to:
            raise ChainRefusal(f"transaction to {hex0x(found.to)}, the anchor contract is {hex0x(wanted.to)}")
        for field in ("chain_id", "nonce", "max_priority_fee", "max_fee", "gas", "value"):
            have, want = getattr(found, field), getattr(wanted, field)
            if have != want:
                raise ChainRefusal(f"transaction with {field} {have}, expected {want}")
        if found.data[:4] != selector or len(found.data) > limit:
            raise ChainRefusal(f"transaction data of {len(found.data)} bytes is not a call of {name}")

    def _nonce(self, address: Address) -> int:
        account, _ = self._prove(self.state_root(), _path(address))
        return int.from_bytes(_account_fields(account)[0], "big") if account else 0

    def _slot(self, slot: int) -> int:
        state = self.state_root()
        account, _ = self._prove(state, _path(self.contract))
        if account is None:
            return 0
        value, _ = self._prove(Digest(_account_fields(account)[2]), _path(word(slot)), made=state == self._made)
        return rlp.integer(rlp.decode(value)) if value else 0

    def _prove(self, root: Digest, key: Digest, *, made: bool = False) -> tuple[bytes | None, tuple[bytes, ...]]:
        """What stands under a key, with its proof.

        A walk through a state that we made is remembered, and answered from memory even where another chain in this
        process asked. What a file holds that was only opened is read every time: it may be damaged.
        """
        walk = _Walk(root, key, self._store.__getitem__)
        try:
            return _walked(walk) if made or root == self._made else walk.go()
        except KeyError:
            hint = "an unknown state root, or a damaged file: then restore it, or begin again from an empty folder"
            raise ChainError(f"EVM state {root.hex()} is not complete in the file", hint=hint) from None


class _Walk:
    """What determines a proof: the root, which commits to every node below it, and the key."""

    __slots__ = ("about", "fetch")

    def __init__(self, root: Digest, key: Digest, fetch: Callable[[bytes], bytes]) -> None:
        self.about = (root, key)
        self.fetch: Callable[[bytes], bytes] | None = fetch
        """Reads nodes by their hashes; no part of the question, and let go once it is answered."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Walk) and other.about == self.about

    def __hash__(self) -> int:
        return hash(self.about)

    def go(self) -> tuple[bytes | None, tuple[bytes, ...]]:
        """Read the nodes."""
        fetch, self.fetch = self.fetch, None
        if fetch is None:
            raise RuntimeError("a walk is gone once")
        return merkle_patricia.prove(*self.about, fetch)


@lru_cache(maxsize=128)
def _walked(walk: _Walk) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Pure in `walk.about`, so the newest are remembered: a block asks for the same slots several times."""
    return walk.go()


@lru_cache(maxsize=64)
def _path(name: bytes) -> Digest:
    """Where an address or a slot stands in its trie."""
    return keccak256(name)


def _account_fields(account: bytes | None) -> list[bytes]:
    """Nonce, balance, storage root and code hash of an account out of our own store."""
    fields = rlp.decode(account) if account else b""
    if not isinstance(fields, list) or len(fields) != 4:
        raise ChainError("the anchor contract's account is missing from the EVM state")
    return [field for field in fields if isinstance(field, bytes)]
