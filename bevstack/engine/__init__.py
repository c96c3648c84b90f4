"""Training and test: additions to mmengine's Runner, and the entry points of the tools.

Importing the package imports nothing: a tool that finds a mistake in its arguments answers at once. Parts are
registered by the modules that :mod:`bevstack.registry` names.
"""
