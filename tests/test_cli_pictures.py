"""The commands for networks of pictures, on pictures made here.   usage: test_cli_pictures.py build/nibble"""
import gzip, json, os, random, signal, struct, subprocess, sys, tempfile, time, unittest

NIBBLE = os.path.abspath(sys.argv.pop(1))
SIDE, CLASSES = 8, 3
STAGES = "input 8 8 1\nconv 6 3 pad 1 norm relu\nconv 6 3 stride 2 dilation 1 groups 2 relu\nmaxpool 2\nflatten\nlinear 3\n"
WORK = tempfile.TemporaryDirectory()
ENV = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def at(name):
    return os.path.join(WORK.name, name)


def run(*words, code=0):
    r = subprocess.run([NIBBLE, *words], capture_output=True, text=True, env=ENV, timeout=120)
    if r.returncode != code:
        raise AssertionError(f"{words}: exit {r.returncode}, wanted {code}\n{r.stdout}{r.stderr}")
    return r.stdout, r.stderr


def tell(*words):
    return json.loads(run(*words, "--json")[0])


def write_set(folder, name, n, seed):
    """A bright bar whose place is the class, in noise."""
    r = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    pictures, labels = bytearray(struct.pack(">4I", 0x803, n, SIDE, SIDE)), bytearray(struct.pack(">2I", 0x801, n))
    for i in range(n):
        labels.append(i % CLASSES)
        for k in range(SIDE * SIDE):
            pictures.append(r.randrange(200, 256) if k // SIDE // 3 == i % CLASSES else r.randrange(0, 120))
    with gzip.open(f"{folder}/{name}-images-idx3-ubyte.gz", "wb", 1) as f:
        f.write(pictures)
    with open(f"{folder}/{name}-labels-idx1-ubyte", "wb") as f:
        f.write(labels)


def setUpModule():
    write_set(at("data"), "train", 300, 1)
    write_set(at("data"), "t10k", 90, 2)
    with open(at("net.txt"), "w") as f:
        f.write(STAGES)
    run("train", "--model", at("net.txt"), "--data", DATA, "--epochs", "4", "--batch", "20", "--lr", "0.01", "-o", at("f"), "--quiet")


DATA = "mnist:" + at("data")
ARGS = ["--data", DATA, "--quiet"]


class Pictures(unittest.TestCase):
    def test_a_network_learns_and_says_so(self):
        report = tell("eval", at("f"), "--data", DATA)
        self.assertGreater(report["accuracy"], 0.9)
        self.assertEqual(report["pictures"], 90)
        self.assertFalse(report["integers_alone"])
        stages = tell("info", at("f"))["stages"]
        self.assertIn("groups 2", stages)
        self.assertEqual(len(stages.splitlines()), len(STAGES.splitlines()))
        report = tell("train", "--model", at("net.txt"), *ARGS, "--epochs", "1", "--smoothing", "0.1", "--flip", "on", "-o", at("smooth"))
        self.assertGreater(report["loss"], 0.3)  # labels of 0.93 and 0.03: their entropy is 0.29
        self.assertEqual(report["steps"], 300 // 64)

    def test_qat_folds_into_the_same_integers(self):
        for recipe in ["w8a8", "w4a4", "w2a4"]:
            q, folded = at(recipe), at(recipe + ".h5")
            report = tell("qat", at("f"), *ARGS, "--recipe", recipe, "--epochs", "1", "-o", q)
            self.assertEqual(report["step"], report["steps"])
            run("fold", q, "-o", folded, "--quiet")
            trained, integers = tell("eval", q, "--data", DATA), tell("eval", folded, "--data", DATA)
            self.assertTrue(integers["integers_alone"])
            self.assertEqual((trained["accuracy"], trained["nll"]), (integers["accuracy"], integers["nll"]))
            self.assertGreater(integers["accuracy"], 0.6)

    def test_learned_ranges_of_both_kinds_train(self):
        for learning in ["lsq", "pact"]:
            with open(at(learning + ".txt"), "w") as f:
                f.write(f"base w4a4\n*.output int4 asym tensor f32 learned:{learning} from:minmax\nhead.output int8 asym tensor f32 static:minmax\n")
            run("qat", at("f"), *ARGS, "--recipe", at(learning + ".txt"), "--epochs", "1", "--scale-lr", "0.05", "-o", at(learning))
            start, end = [ranges(p) for p in [at(learning + ".h5"), at(learning)] if os.path.exists(p) or not run(
                "ptq", "rtn", at("f"), *ARGS, "--recipe", at(learning + ".txt"), "-o", p)[0]]
            self.assertNotEqual(start["layers.0.output"], end["layers.0.output"])

    def test_a_killed_run_ends_in_the_same_bits(self):
        words = ["qat", at("f"), *ARGS, "--recipe", "w4a4", "--epochs", "6", "--batch", "10"]
        run(*words, "-o", at("whole"))
        p = subprocess.Popen([NIBBLE, *words, "-o", at("killed")], env=ENV)
        until = time.time() + 60
        while p.poll() is None and time.time() < until and not os.path.exists(at("killed/last.h5")):
            time.sleep(0.002)
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
        p.wait()
        report = tell(*words, "-o", at("killed"))
        self.assertTrue(report["resumed"])
        self.assertEqual(tell("eval", at("killed"), "--data", DATA)["nll"], tell("eval", at("whole"), "--data", DATA)["nll"])
        self.assertTrue(tell(*words, "-o", at("killed"))["was_finished"])
        self.assertIn("--restart", run(*words[:-1], "12", "-o", at("killed"), code=2)[1])

    def test_every_method_quantizes(self):
        names = list(tell("ptq", "--list", at("f")))
        self.assertEqual(names, ["rtn", "static", "mse", "dynamic", "easyquant", "equalize", "smoothquant", "biascorrect"])
        for name in names:
            self.assertIn(name, run("ptq", "--list")[0].split("networks for pictures:")[1])
            report = tell("ptq", name, at("f"), *ARGS, "--recipe", "w8a8", "-o", at("p.h5"), "--force")
            self.assertEqual(report["recipe"], "w8a8+dynamic" if name == "dynamic" else "w8a8")
            self.assertGreater(tell("eval", at("p.h5"), "--data", DATA)["accuracy"], 0.9)

    def test_compare_tells_all_and_draws(self):
        rows = tell("compare", at("f"), *ARGS, "--recipes", "w8a8", "--methods", "rtn,equalize+mse", "--sheet", at("sheet.svg"))
        self.assertEqual([(r["method"], r["recipe"]) for r in rows], [("float", "float"), ("rtn", "w8a8"), ("equalize+mse", "w8a8")])
        with open(at("sheet.svg")) as f:
            self.assertIn("layers.0.output", f.read())

    def test_exports(self):
        run("fold", at("f"), *ARGS, "--recipe", "w8a8", "-o", at("e.h5"))
        run("export", at("e.h5"), "--to", "c", "-o", at("net.c"), "--quiet")
        run("export", at("e.h5"), "--to", "onnx", "-o", at("net.onnx"), "--quiet")
        with open(at("net.c")) as f:
            self.assertIn("nibble_classify", f.read())
        self.assertGreater(os.path.getsize(at("net.onnx")), 500)
        self.assertIn("is there already", run("export", at("e.h5"), "-o", at("net.c"), code=1)[1])
        self.assertIn("w8a8", run("export", at("f"), "--to", "onnx", "-o", at("no.onnx"), code=1)[1])

    def test_wrong_usage_exits_with_2_and_says_why(self):
        f = at("f")
        for words, why in [
            (["train", "--model", "nonet", *ARGS, "-o", at("x")], "simplenet, simplecnn, dscnn"),
            (["train", "--model", "simplecnn", *ARGS, "-o", at("x")], "28x28"),
            (["train", "--model", "simplecnn", "--data", "elsewhere:x", "-o", at("x")], "mnist:FOLDER"),
            (["train", "--model", "simplecnn", "-o", at("x")], "--data"),
            (["train", "--model", at("net.txt"), *ARGS], "-o"),
            (["train", "--model", at("net.txt"), *ARGS, "-o", at("x"), "--smoothing", "1"], "--smoothing"),
            (["train", "--model", at("net.txt"), *ARGS, "-o", at("x"), "--shift", "1.5"], "--shift"),
            (["train", "--model", at("net.txt"), *ARGS, "-o", at("x"), "--shift", "8"], "--shift"),
            (["train", "--model", at("net.txt"), *ARGS, "-o", at("x"), "--batch", "301"], "--batch"),
            (["qat", f, *ARGS, "-o", at("x")], "--recipe"),
            (["qat", f, *ARGS, "--recipe", "w9", "-o", at("x")], "w9"),
            (["qat", at("e.h5"), *ARGS, "--recipe", "w8a8", "-o", at("x")], "recipe already"),
            (["fold", f, "-o", at("x.h5")], "without a recipe"),
            (["ptq", "gptq", f, *ARGS, "--recipe", "w8a8", "-o", at("x.h5")], "language models"),
            (["ptq", "mse", f, *ARGS, "-o", at("x.h5")], "--recipe"),
            (["ptq", "mse", f, "--recipe", "w8a8", "-o", at("x.h5")], "--data"),
            (["eval", f], "--data"),
            (["eval", f, "--data", DATA, "--dta", "x"], "did you mean --data"),
        ]:
            with self.subTest(words):
                self.assertIn(why, run(*words, code=2)[1])

    def test_hostile_files_are_named(self):
        os.makedirs(at("bad"), exist_ok=True)
        images, labels = at("bad/t10k-images-idx3-ubyte"), at("bad/t10k-labels-idx1-ubyte")
        for head, n_labels, why in [
            (struct.pack(">4I", 0x803, 2, 8, 8) + bytes(128), 3, "2 pictures, 3 labels"),
            (struct.pack(">4I", 0x803, 1 << 31, 1 << 31, 1 << 31), 2, images),
            (struct.pack(">4I", 0x803, 0, 8, 8), 0, "bad"),
            (struct.pack(">4I", 0xD03, 2, 8, 8) + bytes(128), 2, images),
            (b"\x1f\x8b\x08 no gzip", 2, images),
            (b"", 2, images),
        ]:
            with open(images, "wb") as f:
                f.write(head)
            with open(labels, "wb") as f:
                f.write(struct.pack(">2I", 0x801, n_labels) + bytes(n_labels))
            with self.subTest(why):
                self.assertIn(why, run("eval", at("f"), "--data", "mnist:" + at("bad"), code=1)[1])
        self.assertIn("nowhere", run("eval", at("f"), "--data", "mnist:" + at("nowhere"), code=1)[1])
        for text, why in [("", "linear CLASSES"), ("input 8 8 1\nconv 4 9 relu\nlinear 3\n", "line 2"), ("conv 3 3\n", "line 1"),
                          ("input 8 8 1\nconv 4 3 dilation 9\nlinear 3\n", "line 2"), ("input 8 8 1\nconv 4 3 groups 3\nlinear 3\n", "line 2"),
                          ("input 8 8 1\nconv 99999999999999999999 3\nlinear 3\n", "line 2"), ("input 4096 4096 4096\nlinear 1000000\n", "line 2"),
                          ("input 8 8 1\n" + "x" * 300 + "\n", "line 2"), ("conv\0\1\2", "line 1")]:
            with open(at("bad.txt"), "w") as f:
                f.write(text)
            with self.subTest(text[:40]):
                self.assertIn(why, run("train", "--model", at("bad.txt"), *ARGS, "-o", at("x"), code=1)[1])
        with open(at("f/last.h5"), "rb") as f:
            whole = f.read()
        for damaged in [whole[:600], whole[:len(whole) // 2], whole[:700] + bytes(b ^ 255 for b in whole[700:764]) + whole[764:]]:
            with open(at("damaged.h5"), "wb") as f:
                f.write(damaged)
            self.assertIn("damaged.h5", run("eval", at("damaged.h5"), "--data", DATA, code=1)[1])


def ranges(path):
    """Of every site, as `nibble info` prints them."""
    return {line.split()[0]: line.split("  ")[-1].strip() for line in run("info", path)[0].splitlines() if ".." in line}


if __name__ == "__main__":
    unittest.main()
