"""The list of Cython extensions, their compiler flags and directives; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

# One name per extension: native/inferno_native/<name>.pyx becomes inferno_native.<name>.
EXTENSIONS: list[str] = [
    "batching",
    "buckets",
    "candidates",
    "chain",
    "epochs",
    "frames",
    "gguf",
    "gguf_container",
    "gguf_model",
    "gguf_vocab",
    "jsongate",
    "llama",
    "marker_index",
    "penalties",
    "redact_judge",
    "redact_literals",
    "redact_numbers",
    "redact_pem",
    "redact_secrets",
    "redact_tokens",
    "redact_words",
    "redactor",
    "sampler",
    "scanner",
    "textclean",
    "textstream",
]

# A test that needs one module in another build does not want to wait for all of them.
NAMES = os.environ.get("INFERNO_EXTENSIONS", " ".join(EXTENSIONS)).split()
BUILD = os.environ.get("INFERNO_BUILD", "release")
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
HARDENING = ["-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fvisibility=hidden"]
# No -march flag anywhere: a wheel runs on every CPU of its architecture; fast paths are chosen at run time.
COMPILE = {
    "release": ["-O2", "-g1", *WARNINGS, *HARDENING],
    "debug": ["-O0", "-g3", "-UNDEBUG", "-DINFERNO_DEBUG=1", *WARNINGS],
    "sanitize": ["-O1", "-g2", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                 "-fno-sanitize-recover=undefined", *WARNINGS],
    "coverage": ["-O1", "-g2", "-UNDEBUG", "-fsanitize=fuzzer-no-link", *WARNINGS],  # CC=clang
}
LINK = {"sanitize": ["-fsanitize=address,undefined"]}
if BUILD not in COMPILE:
    raise SystemExit(f"INFERNO_BUILD={BUILD!r}: expected one of {', '.join(COMPILE)}")

extensions = [
    Extension(
        f"inferno_native.{name}",
        [f"native/inferno_native/{name}.pyx"],
        extra_compile_args=COMPILE[BUILD],
        extra_link_args=LINK.get(BUILD, []),
        include_dirs=["native/inferno_native"],
        depends=sorted(str(header) for header in Path("native/inferno_native").glob("*.h")),
    )
    for name in NAMES
]

setup(
    packages=[*find_packages(include=["inferno", "inferno.*"]), "inferno_native"],
    package_dir={"inferno_native": "native/inferno_native"},
    package_data={"inferno_native": ["*.pyi", "py.typed", "*.pxd", "*.h"], "inferno": ["py.typed", "storage/*.lua", "security/rules/*.toml", "security/data/*.txt"]},
    ext_modules=cythonize(
        extensions,
        include_path=["native"],
        build_dir=str(Path("build") / "cython" / BUILD),
        compiler_directives={
            "language_level": 3,
            "boundscheck": True,
            "wraparound": False,
            "cdivision": False,
            "embedsignature": True,
            "initializedcheck": True,
        },
    ),
)
