// Room: bindings. The hub's part of the Python module `_core`.
// Knows: its name.
// Does not know: what it does.
#pragma once

#include <nanobind/nanobind.h>

namespace shmcast {

void bind_hub(nanobind::module_& m);

}  // namespace shmcast
