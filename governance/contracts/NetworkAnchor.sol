// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.28;

/// Anchor of one NS-LLM network's audit log, gated by the network's own quorum certificates.
///
/// A precommit is an EIP-712 signature over a block header, so the certificate that decides a block is all that this
/// contract asks for: there is no second signing round. The domain's salt is the network id and it has no chain id, so
/// one certificate is accepted on every chain that hosts this network's contract. Anybody may submit; nobody is trusted.
///
/// Storage, which receipts prove against a state root and which must therefore never move:
///   slots 0 to 2  head: logSize | height << 64 | timeMs << 128, logRoot, headerId
///   slot 3        anchors[logSize] = keccak256(abi.encode(logRoot, headerId))
///   slot 4        isValidator[epoch][address]
///   slot 5        networkId
///   slot 6        validatorsHash
///   slot 7        epoch | validatorCount << 64 | quorum << 80 | anchorCount << 96
///   slots 8 on    recent: log sizes of the newest 1,024 anchors, four in a slot
///
/// An anchor is stored until 1,024 newer ones are, so that the state does not grow for ever: whoever wants to show it
/// later takes its storage proof in time, as receipts do, or its event.
///
/// A header with a `nextEpoch` is the last of its epoch and hands over to the validators that it names: `handover` learns
/// them from its certificate, which the validators before them signed.
/// There are no immutables: the runtime code is the same for every network.
contract NetworkAnchor {
    struct Header {
        uint64 epoch;
        uint64 height;
        uint64 timeMs;
        bytes32 parent;
        address proposer;
        bytes32 bodyDigest;
        bytes32 scoresRoot;
        uint64 logSize;
        bytes32 logRoot;
        bytes32 stateRoot;
        bytes32 validatorsHash;
        bytes32 policyDigest;
        bytes32 registryHash;
        bytes32 nextEpoch;
        bytes32 snapshotHash;
    }

    struct Head {
        uint64 logSize;
        uint64 height;
        uint64 timeMs;
        bytes32 logRoot;
        bytes32 headerId;
    }

    bytes32 private constant DOMAIN_TYPEHASH = keccak256("EIP712Domain(string name,string version,bytes32 salt)");
    bytes32 private constant HEADER_TYPEHASH = keccak256(
        "Header(uint64 epoch,uint64 height,uint64 timeMs,bytes32 parent,address proposer,bytes32 bodyDigest,"
        "bytes32 scoresRoot,uint64 logSize,bytes32 logRoot,bytes32 stateRoot,bytes32 validatorsHash,bytes32 policyDigest,"
        "bytes32 registryHash,bytes32 nextEpoch,bytes32 snapshotHash)"
    );
    bytes32 private constant PRECOMMIT_TYPEHASH = keccak256(
        "Precommit(uint64 epoch,uint64 height,uint32 round,Header header)"
        "Header(uint64 epoch,uint64 height,uint64 timeMs,bytes32 parent,address proposer,bytes32 bodyDigest,"
        "bytes32 scoresRoot,uint64 logSize,bytes32 logRoot,bytes32 stateRoot,bytes32 validatorsHash,bytes32 policyDigest,"
        "bytes32 registryHash,bytes32 nextEpoch,bytes32 snapshotHash)"
    );
    bytes32 private constant VALIDATORS_TYPEHASH = keccak256("ValidatorSet(uint64 epoch,address[] members)");
    bytes32 private constant CHANGE_TYPEHASH =
        keccak256("EpochChange(uint64 epoch,bytes32 validatorsHash,bytes32 policyDigest)");
    /// Half of the secp256k1 order, rounded down: signatures above it have a second spelling (EIP-2).
    uint256 private constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;
    uint256 private constant SIGNATURE_BYTES = 65;
    /// Anchors that are stored.
    uint64 private constant RECENT = 1024;

    /// The newest anchor.
    Head public head;
    /// Log size to keccak256(abi.encode(logRoot, headerId)), of the newest anchors.
    mapping(uint64 logSize => bytes32) public anchors;
    mapping(uint64 epoch => mapping(address => bool)) public isValidator;
    bytes32 public networkId;
    bytes32 public validatorsHash;
    uint64 public epoch;
    uint16 public validatorCount;
    uint16 public quorum;
    /// Anchors since the deployment.
    uint64 public anchorCount;
    /// Log sizes of the newest anchors, the oldest of them next to be overwritten.
    uint64[RECENT] private recent;

    event Anchored(uint64 indexed logSize, bytes32 indexed logRoot, bytes32 indexed headerId, uint64 height, uint32 round);

    /// The contract takes certificates of another epoch's validators now.
    event HandedOver(uint64 indexed epoch, bytes32 indexed validatorsHash, uint64 height, uint16 validatorCount);

    /// Validators are at least one, none zero, in ascending order.
    error BadValidators(uint256 index);
    error WrongEpoch(uint64 given, uint64 expected);
    error WrongValidators(bytes32 given, bytes32 expected);
    /// The log has not grown since the head.
    error StaleLog(uint64 given, uint64 head);
    /// The header does not hand over to this epoch change.
    error WrongChange(bytes32 given, bytes32 expected);
    error BadSignatureLength(uint256 length);
    error NotEnoughSignatures(uint256 have, uint256 need);
    /// s in the upper half of the curve order.
    error HighS(uint256 index);
    /// The signature recovers somebody who is no validator, which is also what a wrong digest looks like.
    error NotValidator(uint256 index, address recovered);
    /// Signers ascend by address, so that none counts twice.
    error SignersNotAscending(uint256 index);

    /// @param networkId_ digest of the genesis
    /// @param validators in ascending order
    constructor(bytes32 networkId_, uint64 epoch_, address[] memory validators) {
        networkId = networkId_;
        _install(epoch_, validators);
    }

    /// Records the log root of a decided header.
    /// @param round the round whose precommits these are
    /// @param signatures r (32) | s (32) | v (1) of each signer, in ascending order of the signers
    function anchor(Header calldata header, uint32 round, bytes calldata signatures) external {
        if (header.logSize <= head.logSize) revert StaleLog(header.logSize, head.logSize);
        _record(header, round, _certified(header, round, signatures));
    }

    /// Goes over to the next epoch's validators, and records the log root if the log has grown.
    /// @param header the last of the present epoch
    /// @param round the round whose precommits these are
    /// @param signatures of the present epoch's validators, as in `anchor`
    /// @param validators of the next epoch, in ascending order
    /// @param policyDigest of the next epoch
    function handover(
        Header calldata header,
        uint32 round,
        bytes calldata signatures,
        address[] calldata validators,
        bytes32 policyDigest
    ) external {
        bytes32 id = _certified(header, round, signatures);
        if (header.logSize > head.logSize) _record(header, round, id);
        _install(epoch + 1, validators);
        bytes32 change = keccak256(abi.encode(CHANGE_TYPEHASH, epoch, validatorsHash, policyDigest));
        if (change != header.nextEpoch) revert WrongChange(change, header.nextEpoch);
        emit HandedOver(epoch, validatorsHash, header.height, validatorCount);
    }

    /// Whether a quorum's certificate for exactly this log and header is among the newest anchors.
    function verify(uint64 logSize, bytes32 logRoot, bytes32 id) external view returns (bool) {
        return anchors[logSize] == keccak256(abi.encode(logRoot, id));
    }

    /// EIP-712 hashStruct(header).
    function headerId(Header calldata header) public pure returns (bytes32) {
        return keccak256(abi.encode(HEADER_TYPEHASH, header));
    }

    /// What a validator signs to precommit a header.
    function precommitDigest(uint64 epoch_, uint64 height, uint32 round, bytes32 id) public view returns (bytes32) {
        bytes32 domain = keccak256(abi.encode(DOMAIN_TYPEHASH, keccak256("NS-LLM"), keccak256("1"), networkId));
        bytes32 precommit = keccak256(abi.encode(PRECOMMIT_TYPEHASH, epoch_, height, round, id));
        return keccak256(abi.encodePacked(hex"1901", domain, precommit));
    }

    /// The header's id, once a quorum of the present epoch's validators is known to have decided it.
    function _certified(Header calldata header, uint32 round, bytes calldata signatures) private view returns (bytes32) {
        if (header.epoch != epoch) revert WrongEpoch(header.epoch, epoch);
        if (header.validatorsHash != validatorsHash) revert WrongValidators(header.validatorsHash, validatorsHash);
        bytes32 id = headerId(header);
        _checkQuorum(precommitDigest(header.epoch, header.height, round, id), signatures);
        return id;
    }

    function _record(Header calldata header, uint32 round, bytes32 id) private {
        uint64 place = anchorCount % RECENT;
        if (recent[place] != 0) delete anchors[recent[place]];
        recent[place] = header.logSize;
        ++anchorCount;
        anchors[header.logSize] = keccak256(abi.encode(header.logRoot, id));
        head = Head(header.logSize, header.height, header.timeMs, header.logRoot, id);
        emit Anchored(header.logSize, header.logRoot, id, header.height, round);
    }

    /// Goes over to a validator set; its quorum is floor((n+f)/2)+1 with f = floor((n-1)/3).
    function _install(uint64 epoch_, address[] memory validators) private {
        uint256 n = validators.length;
        if (n == 0 || n > type(uint16).max) revert BadValidators(n);
        address last;
        for (uint256 i; i < n; ++i) {
            if (validators[i] <= last) revert BadValidators(i);
            last = validators[i];
            isValidator[epoch_][last] = true;
        }
        validatorsHash = keccak256(
            abi.encode(VALIDATORS_TYPEHASH, epoch_, keccak256(abi.encodePacked(validators)))
        );
        epoch = epoch_;
        validatorCount = uint16(n);
        quorum = uint16((n + (n - 1) / 3) / 2 + 1);
    }

    function _checkQuorum(bytes32 digest, bytes calldata signatures) private view {
        uint256 count = signatures.length / SIGNATURE_BYTES;
        if (signatures.length % SIGNATURE_BYTES != 0) revert BadSignatureLength(signatures.length);
        if (count < quorum) revert NotEnoughSignatures(count, quorum);
        address last;
        for (uint256 i; i < count; ++i) {
            bytes calldata one = signatures[i * SIGNATURE_BYTES:(i + 1) * SIGNATURE_BYTES];
            bytes32 s = bytes32(one[32:64]);
            if (uint256(s) > HALF_ORDER) revert HighS(i);
            address signer = ecrecover(digest, uint8(one[64]), bytes32(one[0:32]), s);
            if (!isValidator[epoch][signer]) revert NotValidator(i, signer);
            if (signer <= last) revert SignersNotAscending(i);
            last = signer;
        }
    }
}
