"""What can go wrong in the cache.

CacheError
├── StoreError         (OwnFault) the record store cannot be read or written: damaged page, full disk
├── RecordFileError    (UsageError) a file that is no export of this network's records
└── RecordRefusedError (PeerFault) a record that we must not hold, with the reason
"""

from __future__ import annotations

from nsllm.errors import NsllmError, OwnFault, PeerFault, UsageError


class CacheError(NsllmError):
    """Root of this room's errors."""

    code = "cache_error"


class StoreError(CacheError, OwnFault):
    """The record store cannot be read or written."""

    code = "store_failed"


class RecordFileError(CacheError, UsageError):
    """A file that is no export of this network's records."""

    code = "bad_record_file"


class RecordRefusedError(CacheError, PeerFault):
    """A record that we must not hold."""

    code = "record_refused"
