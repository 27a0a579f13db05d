// Room: pickle. What pickle's own pickler writes, in pieces: keep them, large payloads apart.
// Knows: how a pickle of protocol 5 is framed, and pickle's opcodes for bytes and bytearrays.
// Does not know: shared memory, or what becomes of the pieces.
//
// To a file, the C pickler writes each bytes object or bytearray of 64 KiB and more by itself: the
// object, not a copy, between two pieces of pickle. A bytearray may change before the message is
// sent, so its bytes are copied at once. And such a payload need not be in the pickle: here it
// becomes an out-of-band buffer, which is copied less often and can lie in an arena.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace shmcast {

// From this size on the pickler writes payloads by themselves.
inline constexpr Py_ssize_t kPayloadBytes = 64 * 1024;

// Put in the place of a payload's header: call a function with the next out-of-band buffer.
inline constexpr std::string_view kMakeBytes = "cshmcast._codecs.byte_strings\nbytes_of\n\x97\x85R";
inline constexpr std::string_view kMakeBytearray =
    "cshmcast._codecs.byte_strings\nbytearray_of\n\x97\x85R";

// The opcode and size at the end of a piece, which announce a payload. `bytes` is 0: there is none.
struct PayloadHeader {
  std::size_t bytes = 0;
  bool is_mutable = false;
};

inline std::uint64_t little_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

// Return the header of a payload of this size at the end of a piece. A piece is a frame (or up to
// three opcodes without one) and behind it the header, if a payload follows: so the header can't be
// mistaken, whatever bytes an object is made of.
inline PayloadHeader payload_header(std::string_view piece, bool is_first, std::uint64_t payload) {
  constexpr std::size_t kProtocolBytes = 2;
  constexpr std::size_t kFrameHeader = 9;
  constexpr std::size_t kMostUnframed = 3;
  if (is_first) piece.remove_prefix(std::min(piece.size(), kProtocolBytes));
  std::size_t unframed = kMostUnframed;
  if (piece.size() >= kFrameHeader && piece[0] == '\x95') {
    const std::uint64_t frame = little_endian(piece.substr(1, 8));
    piece.remove_prefix(kFrameHeader);
    if (frame > piece.size()) return {};
    piece.remove_prefix(frame);
    unframed = 0;
  }
  for (const std::size_t size : {std::size_t{5}, std::size_t{9}}) {
    if (piece.size() < size || piece.size() > size + unframed) continue;
    const std::string_view header = piece.substr(piece.size() - size);
    const char opcode = header[0];
    const bool is_known = size == 5 ? opcode == 'B' : opcode == '\x8e' || opcode == '\x96';
    if (is_known && little_endian(header.substr(1)) == payload) return {size, opcode == '\x96'};
  }
  return {};
}

// Let the last piece call for an out-of-band buffer in the place of the payload that it announces.
// Returns 0 if it announces none, -1 with an error set.
inline int take_out_of_band(PyObject* pieces, Py_ssize_t payload) {
  const Py_ssize_t count = PyList_GET_SIZE(pieces);
  if (count == 0) return 0;
  PyObject* const last = PyList_GET_ITEM(pieces, count - 1);
  const std::string_view piece(PyBytes_AS_STRING(last),
                               static_cast<std::size_t>(PyBytes_GET_SIZE(last)));
  const PayloadHeader header =
      payload_header(piece, count == 1, static_cast<std::uint64_t>(payload));
  if (header.bytes == 0) return 0;
  std::string changed(piece.substr(0, piece.size() - header.bytes));
  changed += header.is_mutable ? kMakeBytearray : kMakeBytes;
  PyObject* const made =
      PyBytes_FromStringAndSize(changed.data(), static_cast<Py_ssize_t>(changed.size()));
  if (made == nullptr) return -1;
  return PyList_SetItem(pieces, count - 1, made) == 0 ? 1 : -1;
}

// A pickler's write(). `lists`: a tuple of the list of pieces and that of out-of-band buffers.
inline PyObject* collect_piece(PyObject* lists, PyObject* piece) {
  PyObject* const owned = PyBytes_CheckExact(piece) ? Py_NewRef(piece) : PyBytes_FromObject(piece);
  if (owned == nullptr) return nullptr;
  PyObject* const pieces = PyTuple_GET_ITEM(lists, 0);
  int taken = 0;
  if (PyBytes_GET_SIZE(owned) >= kPayloadBytes) {
    taken = take_out_of_band(pieces, PyBytes_GET_SIZE(owned));
  }
  const int failed =
      taken < 0 ? -1 : PyList_Append(taken == 0 ? pieces : PyTuple_GET_ITEM(lists, 1), owned);
  Py_DECREF(owned);
  return failed == 0 ? Py_NewRef(Py_None) : nullptr;
}

// Return a function that takes what a pickler writes and adds it to the lists.
inline PyObject* piece_collector(PyObject* pieces, PyObject* buffers) {
  static PyMethodDef method{"collect_piece", &collect_piece, METH_O, nullptr};
  PyObject* const lists = PyTuple_Pack(2, pieces, buffers);
  if (lists == nullptr) return nullptr;
  PyObject* const function = PyCFunction_New(&method, lists);
  Py_DECREF(lists);
  return function;
}

}  // namespace shmcast
