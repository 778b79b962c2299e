"""How much memory and time a pickle takes, from its instructions alone, before any is executed."""

import mmap
import pickletools
import struct

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<I",  # signed, but no length is negative
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_HASHES = {"SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"}
_CALLS = {"BUILD", "REDUCE", "INST", "OBJ", "NEWOBJ"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_DATA = {"BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING"}
# Of so many bytes in text and not: numbers of more than 64 bits can be made to collide in a dict.
_LONGEST_NUMBERS = {"INT": 22, "LONG": 22, "LONG1": 9, "LONG4": 9}

_MOST_INSTRUCTIONS = 400_000  # mini-ImageNet has 300,000 with its labels as numbers of NumPy
_DEEPEST = 100
_MOST_TUPLES = 20  # in the arguments of a call, which may hash them
_LEAST_BUFFER = 2**16  # bytes


def bounded(content: mmap.mmap) -> tuple[bytes, list[memoryview]]:
    """The pickle without its large data, and these as views for `pickle.Unpickler(buffers=...)`.

    So an array's data is not read until it is used. Every instruction is followed with the size
    and depth of what it makes, where things that occur twice count twice.

    Raises:
      ValueError: for a pickle of too many instructions, too deep, with numbers of the memo that
        were not given out, or whose dicts and calls would hash, compare and copy far more than it
        contains.
      LookupError, struct.error: for a damaged one.
    """
    run, parts, views, copied, count, size = _Run(), [], [], 0, 0, len(content)
    while True:
        begin = content.tell()
        opcode = _OPCODES[content.read(1)[0]]
        name, length, argument = opcode.name, *_argument(content, opcode.arg)
        count += 1
        if name in _DATA and length >= _LEAST_BUFFER:
            parts += [content[copied:begin], b"\x97"]  # NEXT_BUFFER
            views.append(memoryview(content)[content.tell() - length : content.tell()])
            copied = content.tell()
            size, length = size - length, 0
        elif name == "FRAME":  # its length is no longer right
            parts.append(content[copied:begin])
            copied = content.tell()
        run.follow(opcode, length, argument)
        problem = run.problem(size)
        if count > _MOST_INSTRUCTIONS:
            problem = f"it has more than {_MOST_INSTRUCTIONS:,} instructions"
        elif length > _LONGEST_NUMBERS.get(name, length):
            problem = "it has a number of more than 64 bits"
        elif name in _PUTS and argument > count:
            problem = f"it has an entry {argument:,} in its memo after {count:,} instructions"
        if problem:
            raise ValueError(f"{problem}: it is no data set")
        if name == "STOP":
            return b"".join([*parts, content[copied : content.tell()]]), views


def _argument(content: mmap.mmap, kind: pickletools.ArgumentDescriptor | None) -> tuple[int, int]:
    """The length of an instruction's argument, which is passed over, and its value if a number."""
    value = 0
    if kind is None:
        return 0, value
    if kind.n in _LENGTHS:
        form = _LENGTHS[kind.n]
        (length,) = struct.unpack(form, content.read(struct.calcsize(form)))
        _skip(content, length)
    elif kind.n == pickletools.UP_TO_NEWLINE:
        begin = content.tell()
        for _ in range(2 if kind.name.endswith("_pair") else 1):
            end = content.find(b"\n", content.tell())
            _skip(content, (end if end >= 0 else len(content)) + 1 - content.tell())
        length = content.tell() - begin
        if length <= 22 and kind.name.startswith("decimalnl"):
            value = int(content[begin : begin + length].strip(b"L\n"))
    else:
        length = kind.n
        value = int.from_bytes(content.read(length), "little")
    return length, value


def _skip(content: mmap.mmap, length: int) -> None:
    """Passes over some bytes; an IndexError if they are not all there."""
    place = content.tell() + length
    content[place - 1]
    content.seek(place)


class _Run:
    """The stack and the memo, with [size, depth, tuples] for each thing; large data count nothing.

    A filled one changes in place. Tuples can be made to collide in a dict or set, by thousands. As
    keys, each is charged for a comparison with all before.
    """

    def __init__(self) -> None:
        self._stack: list[list[int] | None] = []  # None is a mark
        self._memo: dict[int, list[int] | None] = {}
        self.deepest = self.work = self._keys = self._in_call = 0

    def follow(self, opcode: pickletools.OpcodeInfo, length: int, argument: int) -> None:
        """One instruction; `work` grows by what it hashes, compares or copies."""
        stack, memo, name = self._stack, self._memo, opcode.name
        if name == "MARK":
            return stack.append(None)
        if name in _PUTS:
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            return None
        if name in _GETS:
            return stack.append(memo[argument])
        if name == "DUP":
            return stack.append(stack[-1])
        if not opcode.stack_before:  # most of them
            stack.extend([length + 1, 0, 0] for _ in opcode.stack_after)
            return None
        taken = self._taken(opcode.stack_before)
        size, tuples = (sum(thing[i] for thing in taken) for i in (0, 2))
        depth = max((thing[1] + 1 for thing in taken), default=0)
        if name in _HASHES or name in _CALLS:
            self._charge(name, taken, size)
        if name in _FILLS:
            filled = taken[-1]
            depth = max(filled[1], *(thing[1] + 1 for thing in taken[:-1]), 0)
            filled[:] = size, depth, tuples
            stack.append(filled)
        else:
            tuples += name in _TUPLES
            stack += [[size + length + 1, depth, tuples] for _ in opcode.stack_after]
        self.deepest = max(self.deepest, depth)
        return None

    def _charge(self, name: str, taken: list[list[int]], size: int) -> None:
        """What an instruction does with the things that it takes, besides taking them."""
        self.work += size
        if name in _CALLS:
            given = taken[:-1] if name == "BUILD" else taken
            self._in_call = max(self._in_call, sum(thing[2] for thing in given))
            return
        filled = 0 if name == "FROZENSET" else 1
        hashed = taken[: len(taken) - filled]
        for key in hashed[1::2] if name.startswith("SETITEM") else hashed:
            self._keys += key[2] > 0
            self.work += key[0] * self._keys * (key[2] > 0)

    def problem(self, size: int) -> str | None:
        """What is wrong so far with a pickle of `size` bytes."""
        if self.deepest > _DEEPEST:
            return f"it is nested more than {_DEEPEST} deep"
        if self._in_call > _MOST_TUPLES:
            return f"it makes something of more than {_MOST_TUPLES} tuples"
        if self.work > 10 * size + 1_000_000:
            return f"it copies or compares {self.work:,} things, but has {size:,} bytes"
        return None

    def _taken(self, before: list[pickletools.StackObject]) -> list[list[int]]:
        """What an instruction takes from the stack, the top first, but marks."""
        taken, number = [], len(before)
        if pickletools.markobject in before:
            while (thing := self._stack.pop()) is not None:
                taken.append(thing)
            number = before.index(pickletools.markobject)
        taken += [self._stack.pop() for _ in range(number)]
        return [thing for thing in taken if thing]
