"""py-evm behind the few calls that the embedded chain needs: a genesis, and one block from ordered transactions.

There is no proof of work, no coinbase and no block exchange: an EVM block is never taken from a peer, only made here
from a decided block's transactions, so that every validator arrives at the same state root. Only this file and
`evm_store` know py-evm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from eth.abc import AtomicDatabaseAPI, BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI
from eth.chains.base import Chain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.constants import ZERO_ADDRESS, ZERO_HASH32
from eth.db.atomic import AtomicDB
from eth.db.batch import BatchDB
from eth.db.diff import DBDiff
from eth.db.schema import SchemaV1
from eth.exceptions import CanonicalHeadNotFound
from eth.typing import AccountState, HeaderParams
from eth.vm.forks.cancun import CancunVM
from eth_typing import Address as EvmAddress
from eth_utils.exceptions import ValidationError

from nsllm.crypto import keccak256
from nsllm.governance.errors import ChainError, ChainRefusal
from nsllm.governance.evm_store import SqliteStore
from nsllm.governance.rlp import decode
from nsllm.governance.transaction import parse_transaction
from nsllm.ids import Address, Digest

RECURSION_LIMIT: Final = 1000
"""CPython's own. py-evm and py_ecc raise it to 100,000 when they are imported, which is more than a C stack holds: a
deeply nested JSON text would end the process. Nothing here calls contracts that call contracts."""
sys.setrecursionlimit(min(RECURSION_LIMIT, sys.getrecursionlimit()))

GAS_LIMIT: Final = 30_000_000
"""Of an EVM block, constant; an anchor of 256 validators needs 4 million at most."""
FUNDS_WEI: Final = 10**24
"""Balance of each funded account at genesis: ten billion anchors at the first base fee. Ether has no other use here."""
HEAD_KEY: Final = SchemaV1.make_canonical_head_hash_lookup_key()
STATE_ROOT_FIELD: Final = 3
"""Of a block header: yellow paper, section 4.4."""
SUCCESS: Final = b"\x01"
"""py-evm keeps a receipt's status in its `state_root` field."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What a decided block did to the EVM state."""

    state_root: Digest
    receipts: tuple[tuple[Digest, bool], ...]
    """Transaction hash and success, in the block's order; what the EVM does not take at all has failed."""
    gas_used: int


class Evm:
    """An EVM chain (Cancun rules) in a store. Holds no state of its own: a rolled back transaction is forgotten."""

    def __init__(self, store: SqliteStore, chain_id: int) -> None:
        """Wrap a store; nothing is read or written yet."""
        self._store = store
        self._chain_id = chain_id
        versions = ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),))
        self._chain_class = Chain.configure("EmbeddedChain", vm_configuration=versions, chain_id=chain_id)

    def create(self, funded: Sequence[Address], time_s: int) -> None:
        """Write the genesis block, in which each of `funded` has `FUNDS_WEI`."""
        header: dict[str, HeaderParams] = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": 0,
            "extra_data": b"NS-LLM",
            "gas_limit": GAS_LIMIT,
            "timestamp": time_s,
            "nonce": bytes(8),  # Paris and later have no proof of work
            "mix_hash": ZERO_HASH32,
        }
        state: AccountState = {
            EvmAddress(address): {"balance": FUNDS_WEI, "nonce": 0, "code": b"", "storage": {}} for address in funded
        }
        self._chain_class.from_genesis(self._store, header, state)

    def state_root(self) -> Digest | None:
        """State root of the newest block; None before the genesis."""
        head = self._head()
        return None if head is None else _state_root(self._store[head])

    def head(self) -> tuple[bytes, dict[bytes, bytes]]:
        """The newest EVM header as it stands under its hash, and the rows of the store that name it the last.

        These and the state are all that the next block reads.
        """
        head = self._chain_class.get_chaindb_class()(self._store).get_canonical_head()
        names = (
            SchemaV1.make_canonical_head_hash_lookup_key(),
            SchemaV1.make_block_number_to_hash_lookup_key(head.block_number),
            SchemaV1.make_block_hash_to_score_lookup_key(head.hash),
            SchemaV1.make_chain_gaps_lookup_key(),
            SchemaV1.make_header_chain_gaps_lookup_key(),
        )
        return self._store[head.hash], {name: self._store[name] for name in names if name in self._store}

    def execute(self, transactions: Sequence[bytes], time_ms: int) -> ExecutionResult:
        """Execute ordered transactions as one block; none is made if none can be executed.

        Deterministic and total: what is malformed or cannot pay is passed over and reported as failed.
        """
        result, changes = self._transition(transactions, time_ms)
        with self._store.transaction():
            self._store.write(changes)
        return result

    def rehearse(self, transactions: Sequence[bytes], time_ms: int) -> ExecutionResult:
        """What `execute` would do; writes nothing, and is not computed again if the very same is executed next."""
        return self._transition(transactions, time_ms)[0]

    def _transition(self, transactions: Sequence[bytes], time_ms: int) -> tuple[ExecutionResult, DBDiff]:
        """Result of the transactions at the newest block, and what they write; nothing is written yet."""
        head = self._head()
        if head is None:
            raise CanonicalHeadNotFound("no genesis was written")
        return _transition(_Step(self, head, self._chain_id, tuple(transactions), time_ms))

    def _head(self) -> Digest | None:
        """Hash of the newest block, where py-evm keeps it; None before the genesis."""
        try:
            return Digest(self._store[HEAD_KEY])
        except KeyError:
            return None

    def run(self, transactions: Sequence[bytes], time_ms: int) -> tuple[ExecutionResult, DBDiff]:
        """Execute beside the store, which is read only."""
        beside = BatchDB(self._store)
        result = self._execute(AtomicDB(beside), transactions, time_ms)
        return result, beside.diff()

    def _execute(self, store: AtomicDatabaseAPI, transactions: Sequence[bytes], time_ms: int) -> ExecutionResult:
        chain = self._chain_class(store)
        parent = chain.get_canonical_head()
        header = chain.create_header_from_parent(
            parent,
            timestamp=max(time_ms // 1000, parent.timestamp + 1),
            coinbase=ZERO_ADDRESS,
            extra_data=b"",
            gas_limit=parent.gas_limit,
        )
        vm = cast("CancunVM", chain.get_vm(header))
        vm.block_preprocessing(vm.get_block())
        applied: list[SignedTransactionAPI] = []
        applied_receipts: list[ReceiptAPI] = []
        receipts: list[tuple[Digest, bool]] = []
        for raw in transactions:
            try:
                transaction = self._admit(vm, header, raw)
            except (ChainRefusal, ValidationError):
                receipts.append((keccak256(raw), False))
                continue
            # Past these checks nothing may be raised: applying locks the state's journal, so there is no way back.
            receipt, _ = vm.apply_transaction(header, transaction)
            header = vm.add_receipt_to_header(header, receipt)
            applied.append(transaction)
            applied_receipts.append(receipt)
            receipts.append((keccak256(raw), receipt.state_root == SUCCESS))
        if applied:
            filled = vm.set_block_transactions_and_withdrawals(
                vm.get_block(), header, tuple(applied), tuple(applied_receipts)
            )
            block = vm.mine_block(filled).block
            chain.persist_block(block)
            header = block.header
        root = header.state_root if applied else parent.state_root
        return ExecutionResult(Digest(root), tuple(receipts), header.gas_used)

    def _admit(self, vm: CancunVM, header: BlockHeaderAPI, raw: bytes) -> SignedTransactionAPI:
        """The transaction, if it can be applied; with the rules that py-evm leaves unchecked.

        Raises:
            ChainRefusal, ValidationError: it cannot.
        """
        chain_id = parse_transaction(raw).transaction.chain_id
        if chain_id != self._chain_id:
            raise ChainRefusal(f"transaction for chain {chain_id}, this is {self._chain_id}")
        transaction = vm.get_transaction_builder().decode(raw)
        transaction.validate()
        if transaction.gas < transaction.intrinsic_gas:
            raise ChainRefusal(f"gas {transaction.gas} below the intrinsic {transaction.intrinsic_gas}")
        vm.validate_transaction_against_header(header, transaction)
        vm.state.validate_transaction(transaction)
        return transaction


class _Step:
    """What determines the next EVM block: the head, whose hash commits to all of the state, and what is done to it."""

    __slots__ = ("about", "evm")

    def __init__(self, evm: Evm, head: Digest, chain_id: int, transactions: tuple[bytes, ...], time_ms: int) -> None:
        self.about = (head, chain_id, transactions, time_ms)
        self.evm: Evm | None = evm
        """Reads the state; no part of the question, and let go once it is answered."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Step) and other.about == self.about

    def __hash__(self) -> int:
        return hash(self.about)


@lru_cache(maxsize=64)
def _state_root(header: bytes) -> Digest:
    """Out of a block header as py-evm stores it; several questions a block ask for it."""
    fields = decode(header)
    root = fields[STATE_ROOT_FIELD] if isinstance(fields, list) else b""
    if not isinstance(root, bytes) or len(root) != 32:
        raise ChainError("the newest EVM header is none", hint="restore the file, or begin again from an empty folder")
    return Digest(root)


@lru_cache(maxsize=256)
def _transition(step: _Step) -> tuple[ExecutionResult, DBDiff]:
    """The step's result. Pure in `step.about`, so the newest results are remembered.

    An anchor comes back in a later round, and in a simulation, where many peers share a process, others execute the
    same on the same state.
    """
    evm, step.evm = step.evm, None
    if evm is None:
        raise RuntimeError("a step is taken once")
    _, _, transactions, time_ms = step.about
    return evm.run(transactions, time_ms)
