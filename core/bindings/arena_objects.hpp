// Room: bindings. Python objects over the arena's memory: a reader's views, a writer's loans.
// Knows: the buffer protocol, and what keeps memory from being reused.
// Does not know: messages. Plain reference counts keep alive all that an object needs.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "arena/arena.hpp"
#include "arena/mapping.hpp"
#include "bindings/fork.hpp"
#include "bindings/gil.hpp"
#include "layout.hpp"

namespace shmcast {

namespace nb = nanobind;

// The arena's mapping in one process. If the memory is pinned, the GPU may read it after the last
// Python object over it is gone. A `keeper` then takes over the claim on that memory.
struct ArenaMapping : Mapping {
  using Mapping::Mapping;
  bool is_read_only() const { return access() == Access::read; }
  std::byte* data() const { return bytes().data(); }
  std::size_t size() const { return bytes().size(); }

  Reference keeper = nb::none();
  Reference room = nb::none();

  // Return how many bytes of memory may be taken now, by the mapping's `room`. With the GIL.
  std::uint64_t room_bytes() const {
    const nb::object bytes = room.is_none() ? nb::none() : call(room);
    return bytes.is_none() ? std::numeric_limits<std::uint64_t>::max()
                           : nb::cast<std::uint64_t>(bytes);
  }
};

// Keeps memory of the arena from being reused for as long as it exists.
struct Claim {
  std::shared_ptr<void> what;
};

// Hand a claim on the memory to the mapping's keeper, if there is one. Called by destructors, so it
// throws nothing, and does nothing once the interpreter shuts down.
template <class MakeClaim>
void hand_to_keeper(const nb::object& mapping, const std::byte* data, std::size_t size,
                    MakeClaim make_claim) noexcept {
  if (!nb::is_alive()) return;
  const Reference& keeper = nb::inst_ptr<ArenaMapping>(mapping)->keeper;
  if (keeper.is_none()) return;
  nb::error_scope pending;  // keeps an error that is pending where the object is dropped
  try {
    call(keeper, Claim{make_claim()}, reinterpret_cast<std::uintptr_t>(data), size);
  } catch (nb::python_error& error) {
    error.restore();
    stops_at_exit([&keeper] { PyErr_WriteUnraisable(keeper.ptr()); });
  }
}

// A reader's view of an extent, counted in shared memory for as long as it exists.
class Hold {
 public:
  Hold(nb::object ring_memory, Held& held) : ring_memory_(std::move(ring_memory)), held_(&held) {
    // relaxed: ordered by the release of the message's last fragment, see Arena.
    std::atomic_ref(*held_).fetch_add(1, std::memory_order_relaxed);
  }
  Hold(Hold&& other) noexcept
      : ring_memory_(std::move(other.ring_memory_)),
        held_(std::exchange(other.held_, nullptr)),
        generation_(other.generation_) {}
  Hold(const Hold&) = delete;
  Hold& operator=(Hold&&) = delete;
  ~Hold() {
    // The views of a fork's child are copies; only its parent's are counted.
    if (held_ == nullptr || generation_ != fork_generation.load(std::memory_order_relaxed)) return;
    // release: pairs with Arena::is_done(); the last use of the memory is over.
    std::atomic_ref(*held_).fetch_sub(1, std::memory_order_release);
  }

 private:
  Reference ring_memory_;
  Held* held_;
  unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
};

// A received frame in place in the arena, read-only.
class Lease {
 public:
  static constexpr bool is_read_only() { return true; }

  Lease(Hold hold, nb::object mapping, std::uint64_t offset, std::size_t size)
      : hold_(std::move(hold)), mapping_(std::move(mapping)), offset_(offset), size_(size) {}
  Lease(Lease&&) noexcept = default;
  Lease(const Lease&) = delete;
  ~Lease() {
    if (!mapping_.is_valid()) return;  // moved from
    hand_to_keeper(mapping_, data(), size_,
                   [this] { return std::make_shared<Hold>(std::move(hold_)); });
  }

  std::byte* data() const { return mapping().bytes().data() + offset_; }
  std::size_t size() const { return size_; }
  std::uint64_t offset() const { return offset_; }
  const ArenaMapping& mapping() const { return *nb::inst_ptr<ArenaMapping>(mapping_); }
  bool is_pinned() const { return !mapping().keeper.is_none(); }

 private:
  Hold hold_;
  Reference mapping_;
  std::uint64_t offset_;
  std::size_t size_;
};

// A lease for a decoder that is to copy what it makes of one kind of objects, and to view the rest.
class PartialLease {
 public:
  static constexpr bool is_read_only() { return true; }

  PartialLease(nb::object lease, nb::object copied)
      : lease_(std::move(lease)), copied_(std::move(copied)) {
    nb::cast<Lease&>(lease_);  // throws if it is none
  }

  std::byte* data() const { return nb::inst_ptr<Lease>(lease_)->data(); }
  std::size_t size() const { return nb::inst_ptr<Lease>(lease_)->size(); }
  nb::object lease() const { return lease_; }
  nb::object copied() const { return copied_; }

 private:
  Reference lease_;
  Reference copied_;  // the kind, as the decoder calls it
};

// A private copy of a lease's memory: each page is copied when it is first written to, or all of
// them at once where there can be no more mappings.
class CopyOnWrite {
 public:
  static constexpr bool is_read_only() { return false; }

  CopyOnWrite(nb::object lease, const Lease& what)
      : copy_(what.mapping(), what.offset(), what.size()),
        lease_(copy_.is_mapped() ? std::move(lease) : nb::object()),
        size_(what.size()) {}

  std::byte* data() const { return copy_.data(); }
  std::size_t size() const { return size_; }

 private:
  PrivateCopy copy_;
  Reference lease_;  // null: a copy needs the arena's memory no longer
  std::size_t size_;
};

// Memory of the arena for the writer's program to fill.
class Loan {
 public:
  static constexpr bool is_read_only() { return false; }

  Loan(std::shared_ptr<Arena> arena, nb::object mapping, std::uint32_t id, std::size_t size)
      : arena_(std::move(arena)), mapping_(std::move(mapping)), id_(id), size_(size) {
    const std::lock_guard lock(mutex());
    live().push_back(this);
  }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  ~Loan() {
    {
      const std::lock_guard lock(mutex());
      std::erase(live(), this);
    }
    // The extent is given back with the last copy of this claim: here, unless a keeper takes one.
    const auto give_back = [arena = arena_, id = id_](void*) { arena->give_back(id); };
    const std::shared_ptr<void> claim(nullptr, give_back);
    hand_to_keeper(mapping_, data(), size_, [&claim] { return claim; });
  }

  std::byte* data() const { return arena_->data(id_); }
  std::size_t size() const { return size_; }
  std::uint32_t id() const { return id_; }

  // Weak references to arrays over this memory that were found in a sent object.
  nb::list views = list_of(std::vector<nb::object>{});

  // Note one of these. Those that are gone are dropped now and then.
  void remember(nb::handle array) {
    constexpr std::size_t kPerSweep = 64;
    if (views.size() % kPerSweep == 0) {
      std::vector<nb::object> alive;
      for (const nb::handle view : views) {
        if (!call(view).is_none()) alive.push_back(nb::borrow(view));
      }
      const nb::list list = list_of(alive);  // (whoever has the list of views has it still)
      if (PyList_SetSlice(views.ptr(), 0, PY_SSIZE_T_MAX, list.ptr()) != 0) {
        throw nb::python_error();
      }
    }
    const nb::object view = owned(PyWeakref_NewRef(array.ptr(), nullptr));
    if (PyList_Append(views.ptr(), view.ptr()) != 0) throw nb::python_error();
  }

  // Return whether the address is in a loan of this process, from any writer.
  static bool covers(std::uintptr_t address) {
    const std::lock_guard lock(mutex());
    return std::any_of(live().begin(), live().end(), [address](const Loan* loan) {
      const auto begin = reinterpret_cast<std::uintptr_t>(loan->data());
      return address >= begin && address < begin + loan->size();
    });
  }

 private:
  static std::vector<const Loan*>& live() {  // guarded by mutex()
    static std::vector<const Loan*> loans;
    return loans;
  }
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }

  std::shared_ptr<Arena> arena_;
  Reference mapping_;
  std::uint32_t id_;
  std::size_t size_;
};

// Memory that belongs to another object, which it keeps alive.
class View {
 public:
  static constexpr bool is_read_only() { return false; }

  View(std::byte* data, std::size_t size, nb::object owner)
      : owner_(std::move(owner)), data_(data), size_(size) {}

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  Reference owner_;
  std::byte* data_;
  std::size_t size_;
};

// Part of a torch storage. The storage is kept alive, but another thread may resize it: its memory
// is then freed. So whoever reads it looks afterwards whether it still was the same.
class StorageView {
 public:
  static constexpr bool is_read_only() { return false; }

  // Throws BufferError if the storage has not so many bytes.
  StorageView(nb::object storage, std::size_t offset, std::size_t size)
      : storage_(std::move(storage)), base_(address()), bytes_(nbytes()), size_(size) {
    if (base_ == 0 || offset > bytes_ || size > bytes_ - offset) {
      throw nb::buffer_error("the storage is too small");
    }
    data_ = reinterpret_cast<std::byte*>(base_) + offset;
  }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool is_intact() const { return address() == base_ && nbytes() == bytes_; }

 private:
  // 0: it has no memory, or (as torch says of a zero tensor's) none to be read.
  std::uintptr_t address() const {
    try {
      return nb::cast<std::uintptr_t>(call_method(storage_, "data_ptr"));
    } catch (const nb::python_error&) {
      return 0;
    }
  }
  std::size_t nbytes() const { return nb::cast<std::size_t>(call_method(storage_, "nbytes")); }

  Reference storage_;
  std::uintptr_t base_;
  std::size_t bytes_;
  std::size_t size_;
  std::byte* data_ = nullptr;
};

template <class Exporter>
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Exporter& memory = *nb::inst_ptr<Exporter>(self);
  return PyBuffer_FillInfo(view, self, memory.data(), static_cast<Py_ssize_t>(memory.size()),
                           memory.is_read_only(), flags);
}

// Return the slots of the buffer protocol, for nb::type_slots().
template <class Exporter>
PyType_Slot* buffer_slots() {
  static PyType_Slot slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer<Exporter>)},
                                {0, nullptr}};
  return slots;
}

}  // namespace shmcast
