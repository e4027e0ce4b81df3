"""The method that the serving tests deploy, small enough to export in a second."""

from ppfr.methods import BackboneSpec, Method, create

SPEC = BackboneSpec("ir18", 16, 0.125, (32, 32))


def build_method(seed: int = 0, **options: object) -> Method:
    return create("partialface", SPEC, seed=seed, table="random", table_seed=77, **options)
