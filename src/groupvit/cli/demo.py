"""`groupvit demo`: a page in the browser."""

from pathlib import Path

from groupvit.errors import InputError


def demo(model: str = "photos-trunk", host: str = "127.0.0.1", port: int = 7860, space: Path | None = None) -> None:
    """Show a page on which photos are dropped and words are typed, on this machine only.

    Args:
        model: A trained model, as for `groupvit segment`.
        host: Address to listen at; 0.0.0.0 lets other machines in.
        port: Port to listen at.
        space: Write this folder for a Hugging Face Space instead.
    """
    if not 1 <= port < 1 << 16:
        raise InputError(f"--port {port}: a port lies between 1 and 65535")
    if space:
        from groupvit.cli.space import write_space

        write_space(space, model)
        print(f"{space}: push this folder to a Space")
    else:
        from groupvit.demo import serve

        serve(model, host, port)
