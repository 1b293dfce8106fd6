"""Receipts: their fields, and the steps of checking one."""

from __future__ import annotations

import re

from tables.pieces import REPOSITORY, attribute_docs, table


def steps() -> str:
    """The steps of `nsllm verify`, from the docstring that `nsllm.governance.verify` opens with."""
    from nsllm.governance import verify

    found = re.findall(r"^    (\w+) +(.+)$", verify.__doc__ or "", re.MULTILINE)
    if tuple(name for name, _ in found) != verify.STEPS:
        raise ValueError("the docstring of nsllm.governance.verify and its STEPS differ")
    return table(("step", "what must hold"), [(f"`{name}`", meaning) for name, meaning in found])


def receipt_fields() -> str:
    """The fields of a receipt, from `nsllm.governance.receipt`."""
    import nsllm.governance.receipt as module

    path = REPOSITORY / "governance" / "receipt.py"
    rows = []
    for kind in (module.Receipt, module.PathStep, module.EntryProof, module.ReceiptAnchor):
        documented = attribute_docs(path, kind.__name__)
        prefix = "" if kind is module.Receipt else f"{kind.__name__}."
        for name in kind.__struct_fields__:
            annotation = kind.__annotations__[name]
            annotation = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
            rows.append((f"`{prefix}{name}`", f"`{_type(annotation)}`", documented.get(name) or "-"))
    return table(("field", "type", "meaning"), rows)


def _type(annotation: str) -> str:
    found = re.match(r"Annotated\[(.+), Meta\(.*\)\]$", annotation)
    return (found[1] if found else annotation).replace("|", "or")
