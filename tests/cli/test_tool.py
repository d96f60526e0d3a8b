#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tool as a user runs it: help, version, exit codes, what goes to which stream."""
import json
import os
import re
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../interop"))
from tap import equal, main, test  # noqa: E402  pylint: disable=wrong-import-position

TOOL = os.environ["GR_TOOL"]
MAN = os.environ["GR_MAN"]
IMAGE = os.environ["GR_IMAGE"]  # blocks pc.ram (pages 0 and 2 of 3) and pc.rom (1 zero page)


def tool(*args, **kwargs):
    """Exit status, standard output, standard error."""
    p = subprocess.run([TOOL, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                       check=False, **kwargs)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def verbs():
    """As `guestram --help` lists them."""
    status, out, _ = tool("--help")
    equal(status, 0, "exit status")
    listed = out.split("Verbs:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in listed.splitlines()]


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help", "--version"}


@test
def help_is_a_result(_):
    status, out, err = tool("--help")
    equal((status, err), (0, ""), "help")
    assert out.startswith("Usage: guestram "), out
    for verb in ("receive", "send", "info", "extract", "features"):
        assert verb in verbs(), verb


@test
def every_verb_has_help(_):
    for verb in verbs():
        status, out, err = tool(verb, "--help")
        equal((status, err), (0, ""), verb)
        assert out.startswith(f"Usage: guestram {verb}"), out
        assert out.endswith("\n"), verb
        for line in out.splitlines():
            assert len(line) <= 100, line


@test
def version_is_a_result(_):
    status, out, err = tool("--version")
    equal((status, err), (0, ""), "version")
    assert re.fullmatch(r"guestram \d+\.\d+\.\d+\n", out), out


@test
def wrong_calls_are_errors_with_a_pointer_to_help(_):
    calls = [[], ["no-such-verb"], ["--no-such-option"], ["receive"], ["receive", "unix:/x"],
             ["receive", "--output", "x"], ["receive", "a", "b", "--output", "x"], ["send"],
             ["send", "x"], ["info"], ["info", "a", "b"], ["extract", "x"]]
    calls += [[verb, "--no-such-option"] for verb in verbs()]
    for call in calls:
        status, out, err = tool(*call)
        equal((status, out), (2, ""), f"{call}: {err}")
        assert "--help" in err, f"{call}: {err}"


@test
def failures_are_exit_status_2_on_standard_error(tmp):
    image = os.path.join(tmp, "image")
    with open(image, "wb") as f:
        f.write(b"not an image")
    calls = [(["info", os.path.join(tmp, "absent")], "No such file"),
             (["info", tmp], "not a file"),
             (["info", image], "byte 0"),
             (["info", image, "--json"], "byte 0"),
             (["extract", image, "pc.ram"], "byte 0"),
             (["send", image, "unix:/x"], "byte 0"),
             (["receive", "no-such-scheme:x", "--output", image], "no-such-scheme"),
             (["receive", f"file:{image}", "--output", image + ".out"], "byte 0"),
             (["receive", f"file:{tmp}/absent", "--output", image + ".out"], "No such file"),
             (["receive", f"file:{image}", "--output", tmp + "/absent/x"], "No such file")]
    for call, words in calls:
        status, out, err = tool(*call)
        equal((status, out), (2, ""), f"{call}: {err}")
        assert words in err, f"{call}: {err}"
        equal(err.count("\n"), 1, f"{call}: lines of {err!r}")
        assert "\x1b" not in err and "\r" not in err, err


@test
def full_standard_output_is_noticed(_):
    with open("/dev/full", "wb") as full:
        p = subprocess.run([TOOL, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    equal(p.returncode, 2, "exit status")
    assert b"standard output" in p.stderr, p.stderr


def result(*args):
    """The JSON object of a call that must succeed quietly."""
    status, out, err = tool(*args, "--json")
    equal((status, err), (0, ""), args)
    return json.loads(out)


@test
def image_is_listed(_):
    listed = result("info", IMAGE)
    equal([(b["id"], b["pages"], b["pages_present"], b["pages_zero"]) for b in listed["blocks"]],
          [("pc.ram", 3, 2, 1), ("pc.rom", 1, 0, 1)], "blocks")
    equal(listed["devices"], [{"name": "clock", "instance": 0, "version": 3}], "devices")
    equal(listed["ram_bytes"], 4 * 4096, "RAM")
    status, out, err = tool("info", IMAGE)
    equal((status, err), (0, ""), "info")
    for words in ("pc-i440fx-7.2", "pc.ram", "pc.rom", "clock"):
        assert words in out, out


def stream_of(ids):
    """A stream of blocks of one zero page each, without devices."""
    blocks = b"".join(bytes([len(i)]) + i + struct.pack(">Q", 4096) for i in ids)
    eos = struct.pack(">QBI", 0x10, 0x7E, 2)
    return (b"QEVM\0\0\0\3\7\0\0\0\4test\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4"
            + struct.pack(">Q", 4096 * len(ids) | 4) + blocks + eos + b"\3\0\0\0\2" + eos
            + b'\0\6\0\0\0\x0e{"devices":[]}')


@test
def names_of_strangers_do_no_harm(tmp):
    wire, image = os.path.join(tmp, "wire"), os.path.join(tmp, "\u00fc\u20ac.ram")
    names = ["\u00fc/\u20ac".encode(), b"../a\n\x1b[2J\"\\", b"\xff\xc2\x9b"]
    with open(wire, "wb") as f:
        f.write(stream_of(names))
    got = result("receive", f"file:{wire}", "--output", image)
    equal(got["image"], image, "its name")
    listed = [b["id"] for b in result("info", image)["blocks"]]
    equal(listed, [names[0].decode(), names[1].decode(), "\u00ff\u00c2\u009b"], "names")
    # what is listed can be asked for
    for name in listed[:2]:
        p = subprocess.run([TOOL, "extract", image, name], capture_output=True, check=True)
        equal(p.stdout, bytes(4096), name)
    status, out, err = tool("info", image)
    equal((status, err), (0, ""), "info")
    assert all(c.isprintable() or c == "\n" for c in out), out
    equal(len([line for line in out.splitlines() if " 4096 " in line]), 3, out)


@test
def image_behind_something_else_is_found_by_its_offset(tmp):
    path = os.path.join(tmp, "both")
    status, _, err = tool("send", IMAGE, f"file:{tmp}/stream")
    equal(status, 0, err)
    with open(path, "wb") as f:
        f.write(b"x" * 5000)
    status, _, err = tool("receive", f"file:{tmp}/stream", "-o", f"file:{path},offset=4k")
    equal(status, 0, err)
    with open(path, "rb") as f:
        equal(f.read(4096), b"x" * 4096, "what was in front")
    whole = subprocess.run([TOOL, "extract", IMAGE, "pc.ram"], capture_output=True, check=True)
    got = subprocess.run([TOOL, "extract", f"file:{path},offset=0x1000", "pc.ram"],
                         capture_output=True, check=True)
    equal(got.stdout == whole.stdout, True, "pc.ram")
    for name, why in ((path, "byte 0"), (f"file:{path},offset=1y", "not a number of bytes"),
                      ("file:,offset=1", "no path"), (f"file:{path},offset=1T", "incomplete")):
        status, _, err = tool("info", name)
        equal(status, 2, "status")
        assert why in err, err


@test
def block_is_extracted_to_a_pipe_and_to_a_file(tmp):
    expected = b"\x01" * 4096 + bytes(4096) + b"\x03" * 4096
    p = subprocess.run([TOOL, "extract", IMAGE, "pc.ram"], capture_output=True, check=True)
    equal(p.stderr, b"", "standard error")
    assert p.stdout == expected
    path = os.path.join(tmp, "out")
    for options_ in (["--output", path], ["-o", path], [f"--output={path}"]):
        equal(tool("extract", IMAGE, "pc.ram", *options_), (0, "", ""), "extract")
        with open(path, "rb") as f:
            assert f.read() == expected
    equal(tool("extract", IMAGE, "pc.rom", "-o", path), (0, "", ""), "extract")
    equal(os.path.getsize(path), 4096, "size of a block of zeros")
    status, out, err = tool("extract", IMAGE, "pc.bios")
    equal((status, out), (2, ""), "unknown block")
    assert "pc.bios" in err, err


@test
def image_is_never_its_own_output(tmp):
    image, link = os.path.join(tmp, "vm.ram"), os.path.join(tmp, "link")
    shutil.copy(IMAGE, image)
    os.symlink(image, link)
    for path in (image, link):
        status, out, err = tool("extract", image, "pc.ram", "-o", path)
        equal((status, out), (2, ""), err)
        assert "image itself" in err, err
    equal(result("info", image)["ram_bytes"], 4 * 4096, "the image lives")


@test
def closed_standard_streams_are_taken_by_no_file_of_ours(tmp):
    wire = os.path.join(tmp, "wire")

    def shell(words):
        return subprocess.run(["sh", "-c", words, TOOL, IMAGE, wire], timeout=60,
                              capture_output=True, check=False)

    p = shell('"$0" extract "$1" pc.ram >&-')
    equal(p.returncode, 2, "nowhere to write to")
    assert b"standard output" in p.stderr, p.stderr
    # the command's output goes to number 2, which was the image
    p = shell('"$0" send "$1" "exec:cat > \'$2\'; echo sent" 2>&-')
    equal(p.returncode, 0, "sent")
    result("receive", f"file:{wire}", "--output", wire + ".ram")


@test
def bytes_never_go_to_a_terminal(_):
    ours, theirs = os.openpty()
    p = subprocess.run([TOOL, "extract", IMAGE, "pc.ram"], stdout=theirs, stderr=subprocess.PIPE,
                       check=False)
    equal(p.returncode, 2, "exit status")
    assert b"terminal" in p.stderr, p.stderr
    os.close(ours)
    os.close(theirs)


@test
def image_sent_and_received_is_the_same(tmp):
    wire, image = os.path.join(tmp, "wire"), os.path.join(tmp, "vm.ram")
    sent = result("send", IMAGE, f"file:{wire}")
    equal((sent["pages_normal"], sent["pages_zero"]), (2, 2), "pages")
    equal(sent["bytes_sent"], os.path.getsize(wire), "bytes")
    for uri in (f"file:{wire}", f"exec:cat {wire}", wire):
        got = result("receive", uri, "--output", image)
        equal((got["pages_normal"], got["pages_zero"]), (2, 2), "pages")
        assert set(got) >= {"image", "machine", "blocks", "ram_bytes", "file_bytes",
                            "disk_bytes", "bytes_received", "total_time_ns"}, got
        equal(result("info", image)["devices"], result("info", IMAGE)["devices"], "devices")
        assert not os.path.exists(image + ".part")
    status, out, err = tool("send", image, "exec:exit 3")
    equal((status, out), (2, ""), f"a command that fails: {err}")


@test
def incomplete_stream_keeps_the_part(tmp):
    wire, image = os.path.join(tmp, "wire"), os.path.join(tmp, "vm.ram")
    result("send", IMAGE, f"file:{wire}")
    os.truncate(wire, os.path.getsize(wire) - 1)
    status, out, err = tool("receive", f"file:{wire}", "--output", image)
    equal((status, out), (2, ""), "incomplete")
    assert re.search(r"byte \d+", err), err
    assert os.path.exists(image + ".part") and not os.path.exists(image)
    # nobody can tell, so it has to be asked for
    equal(tool("receive", f"file:{wire}", "--output", image, "--allow-unterminated")[0], 0,
          "allowed")


@test
def listener_says_where_on_standard_error(tmp):
    image = os.path.join(tmp, "vm.ram")
    p = subprocess.Popen([TOOL, "receive", "tcp:127.0.0.1:0", "--output", image, "--json"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    uri = p.stderr.readline().decode().split("listening on ")[1].strip()
    assert re.fullmatch(r"tcp:127\.0\.0\.1:[1-9]\d*", uri), uri
    result("send", IMAGE, uri)
    out, err = p.communicate(timeout=60)
    equal((p.returncode, err), (0, b""), "receiver")
    equal(json.loads(out)["ram_bytes"], 4 * 4096, "RAM")


@test
def features_are_json_on_request(_):
    status, out, _ = tool("features", "--json")
    equal(status, 0, "exit status")
    listed = json.loads(out)["features"]
    assert all(set(f) == {"name", "available", "detail"} for f in listed), listed


@test
def man_page_and_help_have_the_same_options(_):
    with open(MAN, encoding="utf-8") as f:
        page = f.read()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^#)", page, re.M | re.S))
    equal(sorted(sections), sorted(verbs()), "verbs")
    for verb, section in sections.items():
        helped = options(tool(verb, "--help")[1])
        defined = options("\n".join(line for line in section.splitlines()
                                    if line.startswith("*-")))
        equal(defined, helped, f"options of {verb}")


main()
