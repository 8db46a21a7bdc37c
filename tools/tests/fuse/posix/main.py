"""All cases, on the directory that is named."""

import attributes  # noqa: F401
import contents  # noqa: F401
import names  # noqa: F401
