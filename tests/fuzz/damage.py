"""Files as crashes, bad disks and other programs leave them."""

from hypothesis import strategies as st


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a file cut short, with bits flipped, with bytes put in or left out, or others altogether."""
    match draw(st.sampled_from(["shorter", "flipped", "longer", "hole", "zeros", "other"])):
        case "shorter":
            return whole[: draw(st.integers(0, len(whole) - 1))]
        case "flipped":
            data = bytearray(whole)
            for at in draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4, unique=True)):
                data[at] ^= 1 << draw(st.integers(0, 7))
            return bytes(data)
        case "longer":
            at = draw(st.integers(0, len(whole)))
            return whole[:at] + draw(st.binary(min_size=1, max_size=64)) + whole[at:]
        case "hole":
            first = draw(st.integers(0, len(whole) - 1))
            return whole[:first] + whole[first + draw(st.integers(1, len(whole) - first)) :]
        case "zeros":  # a page that was never written
            first = draw(st.integers(0, len(whole) - 1))
            return whole[:first] + bytes(len(whole) - first)
        case _:
            return draw(st.binary(max_size=200))
