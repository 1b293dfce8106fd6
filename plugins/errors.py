"""What can go wrong with plugins.

PluginError
├── PluginMissingError  (UsageError) an enabled plugin is not installed, or its name cannot be used
├── HookResultError     a hook returned what its specification does not allow
└── WorkerError         (OwnFault)   a plugin worker crashed, hung, or spoke out of turn

That a built-in safety layer cannot answer is `nsllm.governance.errors.SafetyUnavailableError`.
"""

from __future__ import annotations

from nsllm.errors import NsllmError, OwnFault, UsageError


class PluginError(NsllmError):
    """Root of this room's errors."""

    code = "plugin_error"


class PluginMissingError(PluginError, UsageError):
    """An enabled plugin is not installed, or its name cannot be used."""

    code = "plugin_missing"


class HookResultError(PluginError):
    """A hook returned what its specification does not allow."""

    code = "bad_hook_result"


class WorkerError(PluginError, OwnFault):
    """A plugin worker crashed, hung, or spoke out of turn."""

    code = "plugin_worker_failed"
