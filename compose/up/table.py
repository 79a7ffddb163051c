"""What `tailsrv-up` prints when all listen: what is where, and commands to paste."""

from __future__ import annotations

from tailsrv_formats.addresses import Address, parse_address

WILDCARDS = ("::", "0.0.0.0", "")  # noqa: S104 - to be recognized, not bound


def describe(file: str, framing: str, lanes: dict[str, str]) -> str:
    """The table. `lanes`: broadcast, collate, acknowledged and index, with the address of each."""
    width = max(map(len, lanes)) + 2
    rows = [f"  {name:<{width}}{address}" for name, address in lanes.items()]
    nc = {name: _netcat(parse_address(address)) for name, address in lanes.items()}
    commands = [
        ("follow the stream from its first byte", f"echo 0 | {nc['broadcast']}"),
        ("what is there now, and no more", f"echo 0 now | {nc['broadcast']}"),
    ]
    if framing == "newline":
        commands.append(("write a line", f"echo hello | {nc['collate'].replace('nc ', 'nc -N ', 1)}"))
    commands.append(
        ("follow from message 1000 on", f"echo 1000 | {nc['index'].replace('nc ', 'nc -N ', 1)} | {nc['broadcast']}")
    )
    longest = max(len(what) for what, _ in commands)
    pasted = [f"  {what:<{longest}}   {how}" for what, how in commands]
    return "\n".join([f"\n{file} ({framing})", *rows, "", *pasted, "\nCtrl-C stops all of them.\n"])


def _netcat(address: Address) -> str:
    if address.path is not None:
        return f"nc -U {address.path}"
    return f"nc {'localhost' if address.host in WILDCARDS else address.host} {address.port}"
