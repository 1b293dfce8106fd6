"""Check a receipt offline, as `nsllm verify` does, and print what each field is worth.

    python examples/verify_receipt.py r.json nsllm-devnet/genesis.json

CI runs this with a receipt from a devnet whose peers have stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nsllm.governance.errors import ReceiptError
from nsllm.governance.genesis import load_genesis
from nsllm.governance.verify import verify_receipt

receipt, genesis = Path(sys.argv[1]), Path(sys.argv[2])
try:
    report = verify_receipt(receipt.read_text(), load_genesis(genesis), require="certified")
except ReceiptError as error:
    sys.exit(f"refused at step {error.step}, field {error.field}: {error.message}")

print(f"{report.level} at height {report.height}, {report.signers} of {report.validators} validators signed")
for finding in report.findings:
    print(f"{finding.standing:9} {finding.field:20} {finding.value}")
