"""The banner that `tailsrv-up` prints when all daemons listen: their addresses, and commands to paste."""

from __future__ import annotations

from tailsrv_formats.addresses import Address, parse_address

WILDCARDS = ("::", "0.0.0.0", "")  # noqa: S104 - recognized here, not bound


def banner(file: str, framing: str, addresses: dict[str, str]) -> str:
    """The text, with its line's end. `addresses`: of the broadcast, collate, acknowledged and index ports, by name."""
    width = max(map(len, addresses)) + 2
    rows = [f"  {name:<{width}}{address}" for name, address in addresses.items()]
    nc = {name: _netcat(parse_address(address)) for name, address in addresses.items()}
    commands = [
        ("follow the stream from its first byte", f"echo 0 | {nc['broadcast']}"),
        ("read what there is now, then end", f"echo 0 now | {nc['broadcast']}"),
    ]
    if framing == "newline":
        commands.append(("write a line", f"echo hello | {nc['collate'].replace('nc ', 'nc -N ', 1)}"))
    commands.append(
        (
            "follow the stream from message 1000",
            f"echo 1000 | {nc['index'].replace('nc ', 'nc -N ', 1)} | {nc['broadcast']}",
        )
    )
    longest = max(len(what) for what, _ in commands)
    examples = [f"  {what:<{longest}}   {how}" for what, how in commands]
    return "\n".join([f"\n{file} ({framing})", *rows, "", *examples, "\nCtrl-C stops all of them.\n\n"])


def _netcat(address: Address) -> str:
    if address.path is not None:
        return f"nc -U {address.path}"
    return f"nc {'localhost' if address.host in WILDCARDS else address.host} {address.port}"
