"""Operators: one public function each, backends behind it."""

from bevstack.ops.deformable_attention import deformable_attention

__all__ = ["deformable_attention"]
