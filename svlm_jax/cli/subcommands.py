"""Commands of several parts: `svlm evaluate BENCHMARK ...`, `svlm curate STEP ...`. Each part is a module with a `main`."""

import difflib
import importlib
import sys
from collections.abc import Mapping

from svlm_jax.errors import InputError, shortened


def dispatch(command: str, part: str, modules: Mapping[str, str], ending: str) -> None:
    """Run the module that the first argument names, which parses what follows; without one, or with --help, list them.

    Args:
        command: "curate"; the modules are those of `svlm_jax.cli.curate`.
        part: what a module is called: "STEP".
        modules: what each does, by name.
        ending: the last line of the list.

    Raises:
        InputError: no such module.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, modules))
        lines = [f"  {module:<{width}}  {text}" for module, text in modules.items()]
        print("\n".join([f"usage: svlm {command} {part} ...", "", *lines, "", ending]))
        return
    if name not in modules:
        near = difflib.get_close_matches(name, modules, 1)
        expected = near[0] if near else f"one of {', '.join(modules)}"
        raise InputError(f"svlm {command}", shortened(name, 60), expected, f"svlm {command} --help lists them")
    sys.argv = [f"svlm {command} {name}", *sys.argv[2:]]
    importlib.import_module(f"svlm_jax.cli.{command}.{name}").main()
