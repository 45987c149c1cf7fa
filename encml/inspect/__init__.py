"""Looking at a computation on shares: what it gets wrong, and what it costs, module by module."""

from encml.inspect.checking import check
from encml.inspect.costs import ModuleCosts, profile
from encml.inspect.report import Finding, Report

__all__ = ["Finding", "ModuleCosts", "Report", "check", "profile"]
