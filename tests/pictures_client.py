"""Networks for pictures by the program: trained, quantized, exported as C and as ONNX; onnxruntime on the test pictures.
usage: pictures_client.py build/nibble   (77: onnxruntime or the pictures are missing)"""
import ctypes, gzip, json, os, subprocess, sys, tempfile
try:
    import numpy as np, onnxruntime as ort
except ImportError:
    sys.exit(77)

NIBBLE = os.path.abspath(sys.argv[1])
FOLDERS = [("mnist", "../shared/data/mnist"), ("fashion", "/usr/share/datasets/fashion-mnist")]
# text of the network (None: it ships), recipes, pictures
NETWORKS = {
    "simplenet": (None, ["w8a8", "w4a4"], 10000),
    "cnn": ("input 28 28 1\nconv 8 3 stride 2 pad 1 norm relu\nmaxpool 2\nconv 8 3 pad 1 depthwise norm relu6\nconv 16 1 norm relu\n"
            "avgpool 3\nlinear 10\n", ["w8a8", "w4a4"], 2000),
}


def run(*words):
    return subprocess.run([NIBBLE, *words], check=True, capture_output=True, text=True).stdout


def read(folder, name, skip):
    return np.frombuffer(gzip.open(os.path.join(folder, name)).read()[skip:], np.uint8)


def codes_of_c(path, x):
    subprocess.run(["cc", "-std=c11", "-ffreestanding", "-O2", "-fPIC", "-shared", "-o", path + ".so", path], check=True)
    text = open(path).read()
    number = lambda name: int(text.split("#define NIBBLE_" + name)[1].split()[0])
    library = ctypes.CDLL(path + ".so")
    out = np.zeros((len(x), number("CLASSES")), np.int8)
    room = np.zeros(number("ROOM"), np.int8)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    for i in range(len(x)):
        library.nibble_classify(pointer(x[i]), pointer(out[i]), pointer(room))
    zero, scale = text.split("(code - ")[1].split(" */")[0].split(") * ")
    return out.astype(int), int(zero), float(scale)


def main():
    kind, folder = next(((k, f) for k, f in FOLDERS if os.path.exists(f)), (None, None))
    if not kind:
        sys.exit(77)
    data = f"{kind}:{folder}"
    x, y = read(folder, "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784), read(folder, "t10k-labels-idx1-ubyte.gz", 8)
    x = np.ascontiguousarray(x)
    with tempfile.TemporaryDirectory() as work:
        for name, (text, recipes, n) in NETWORKS.items():
            model = name
            if text:
                model = os.path.join(work, name + ".txt")
                open(model, "w").write(text)
            f = os.path.join(work, name)
            run("train", "--model", model, "--data", data, "--epochs", "1", "-o", f, "--quiet")
            for recipe in recipes:
                q, c, onnx = [os.path.join(work, f"{name}_{recipe}.{end}") for end in ["h5", "c", "onnx"]]
                run("fold", f, "--recipe", recipe, "--data", data, "-o", q, "--quiet")
                run("export", q, "--to", "c", "-o", c)
                run("export", q, "--to", "onnx", "-o", onnx)
                accuracy = json.loads(run("eval", q, "--data", data, "--json", "--quiet"))["accuracy"]
                mine, zero, scale = codes_of_c(c, x[:n])
                assert n < len(x) or accuracy == (mine.argmax(1) == y).mean(), "the C file and eval differ"
                session = ort.InferenceSession(onnx)
                pictures = (x[:n].astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
                logits = np.concatenate([session.run(None, {"picture": pictures[i:i + 500]})[0] for i in range(0, n, 500)])
                theirs = np.rint(logits / np.float32(scale)).astype(int) + zero
                same = int((theirs.argmax(1) == mine.argmax(1)).sum())
                off = np.abs(theirs - mine)
                print(f"{name} {recipe}: accuracy {accuracy:.4f}, same class {same} of {n}, largest difference {off.max()} codes,"
                      f" {int((off > 0).sum())} codes differ")
                assert same >= 0.9995 * n and off.max() <= 1, "onnxruntime differs"
                assert accuracy > 0.5


main()
