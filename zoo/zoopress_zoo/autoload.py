"""Tell transformers of zoopress's quantizer when, and only if, transformers is imported.

`zoopress.pth` imports this at the start of every interpreter of an environment that zoopress is
installed in, so it must cost nothing: transformers has no entry point that it would find us by.
"""

import sys

_TARGET = "transformers.quantizers.auto"


class _Finder:
    """Finds one module as everybody does, and adds to what happens once it has been imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _TARGET:
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):  # type: ignore[no-untyped-def]
            execute(module)
            try:
                import zoopress_zoo.transformers_quantizer  # noqa: F401  # registers itself
            except Exception as error:  # transformers must work, whatever is wrong with us
                import warnings

                warnings.warn(
                    f"zoopress could not register with transformers ({error}), so models that it "
                    "compressed load through zoopress.load alone. Update both.",
                    stacklevel=1,
                )

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _TARGET not in sys.modules:
    sys.meta_path.insert(0, _Finder)
