"""What a user puts on the modules of a model: hooks, and a forward of their own. It survives, or is refused by name."""

from functools import partial

from torch import nn

from lpvit.errors import LpvitError


def addition(*modules: nn.Module) -> str:
    """What the first of some modules has beside its class; empty if none has anything."""
    for module in modules:
        if "forward" in vars(module):
            return "a forward of its own"
        if any((module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)):
            return "hooks"
    return ""


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replaces a module of a model.

    Raises:
        LpvitError: The present one has something that would be lost.
    """
    if added := addition(model.get_submodule(name)):
        raise LpvitError(f"model: '{name}' has {added}, lost with the layer that is replaced here; remove that first")
    model.set_submodule(name, new)


def require_bound_forwards(model: nn.Module) -> None:
    """Checks that forwards of modules are bound to them: another function would compute with the original's weights.

    Raises:
        LpvitError: One is not.
    """
    for name, module in model.named_modules():
        forward = vars(module).get("forward", module.forward)
        arguments = forward.args if isinstance(forward, partial) else (getattr(forward, "__self__", None),)
        if not any(each is module for each in arguments):
            raise LpvitError(
                f"model: '{name}' has a forward that is not bound to it, so a copy would compute with the original's "
                "weights; set it by types.MethodType(function, module)"
            )
