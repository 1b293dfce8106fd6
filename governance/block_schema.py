"""The tables of `block_store`: blocks, what they settled, and what is looked up in them."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block (
    height INTEGER PRIMARY KEY,
    header_id BLOB NOT NULL,
    time_ms INTEGER NOT NULL,
    round INTEGER NOT NULL,
    signers INTEGER NOT NULL,
    records INTEGER NOT NULL,
    transactions INTEGER NOT NULL,
    log_start INTEGER NOT NULL,
    log_size INTEGER NOT NULL,
    decided BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS scored (
    record BLOB PRIMARY KEY,
    height INTEGER NOT NULL,
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS scored_by_height ON scored (height);
CREATE TABLE IF NOT EXISTS settled (
    position INTEGER PRIMARY KEY,
    record BLOB NOT NULL UNIQUE,
    time_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS epoch (
    epoch INTEGER PRIMARY KEY,
    boundary INTEGER NOT NULL,
    change BLOB NOT NULL,
    policy BLOB NOT NULL,
    certificate BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS motion (
    digest BLOB PRIMARY KEY,
    height INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS unscored (
    record BLOB PRIMARY KEY,
    height INTEGER NOT NULL,
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unscored_by_height ON unscored (height);
CREATE TABLE IF NOT EXISTS peer_checkpoint (
    peer BLOB PRIMARY KEY,
    time_ms INTEGER NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS offence (
    validator BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    kind TEXT NOT NULL,
    offence_height INTEGER,
    height INTEGER NOT NULL,
    PRIMARY KEY (validator, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchor (
    log_size INTEGER PRIMARY KEY,
    log_root BLOB NOT NULL,
    header_height INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL,
    transaction_height INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    proof_height INTEGER,
    proof BLOB
);
CREATE INDEX IF NOT EXISTS anchor_unproved ON anchor (log_size) WHERE proof IS NULL;
"""
