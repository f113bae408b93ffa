# SPDX-License-Identifier: Apache-2.0
"""What every other package stands on: described objects, files, figures, distribution."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
