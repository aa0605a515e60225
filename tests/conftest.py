import gc
import os

import pytest

# Workers take a file at a time: those that take longest first, so that none is waited for in the end.
LONGEST = (
    "test_training.py",
    "test_mujoco_parity.py",
    "test_probes.py",
    "test_cli.py",
    "test_workers.py",
    "test_sweep.py",
    "test_ciqr.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    # Compiling is most of the work of these tests. In the environment, so that processes they start find it, too.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if config.option.markexpr == "slow":
        return
    gc.set_threshold(50_000, 20, 20)  # tracing makes many objects that live as long as their programs
    # Programs this small run as fast without optimisations, and compile in a fifth of the time.
    quick = (
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    )
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()
