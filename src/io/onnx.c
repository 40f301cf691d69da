/* onnx.c - ONNX models as protobuf, written by hand (onnx.proto, IR version 10, opset 21: the first with int4).
 *   protobuf: fields of (number << 3 | kind): kind 0 a varint, 2 a length and bytes, 5 four bytes
 *   ModelProto 1 ir_version, 2 producer_name, 7 graph, 8 opset_import {2 version}
 *   GraphProto 1 node, 2 name, 5 initializer, 11 input, 12 output
 *   NodeProto 1 input, 2 output, 3 name, 4 op_type, 5 attribute {1 name, 2 f, 3 i, 8 ints, 20 type}
 *   TensorProto 1 dims, 2 data_type, 8 name, 9 raw_data; int4: two a byte, the first in the low half
 *   ValueInfoProto 1 name, 2 type {1 tensor_type {1 elem_type, 2 shape {1 dim {1 dim_value, 2 dim_param}}}}
 */
#include "io/io.h"
#include <stdlib.h>
#include <string.h>

enum { IR_VERSION = 10, OPSET = 21, FLOAT = 1 };

static void put(fm_message *m, const void *data, size_t bytes)
{
    if (m->failed || !bytes)
        return;
    if (bytes > m->room - m->bytes) {
        const size_t room = 2 * m->room + bytes + 64;
        uint8_t *p = nb_resize(m->data, room, 1);
        if (!p) {
            m->failed = true;
            return;
        }
        m->data = p;
        m->room = room;
    }
    memcpy(m->data + m->bytes, data, bytes);
    m->bytes += bytes;
}

static void put_varint(fm_message *m, uint64_t v)
{
    uint8_t b[10];
    size_t n = 0;
    for (; v > 127; v >>= 7)
        b[n++] = (uint8_t)(v | 128);
    b[n++] = (uint8_t)v;
    put(m, b, n);
}

static void put_int(fm_message *m, unsigned field, int64_t v)
{
    put_varint(m, field << 3);
    put_varint(m, (uint64_t)v);
}

static void put_bytes(fm_message *m, unsigned field, const void *data, size_t bytes)
{
    put_varint(m, field << 3 | 2);
    put_varint(m, bytes);
    put(m, data, bytes);
}

static void put_text(fm_message *m, unsigned field, const char *text)
{
    put_bytes(m, field, text, strlen(text));
}

/* Part is emptied, and freed. */
static void put_part(fm_message *m, unsigned field, fm_message *part)
{
    m->failed = m->failed || part->failed;
    put_bytes(m, field, part->data, part->bytes);
    free(part->data);
    *part = (fm_message){0};
}

void fm_onnx_tensor(fm_onnx *g, const char *name, fm_onnx_type type, int n_dim, const int64_t *dim, const void *data, size_t bytes)
{
    fm_message t = {0};
    for (int i = 0; i < n_dim; i++)
        put_int(&t, 1, dim[i]);
    put_int(&t, 2, type);
    put_text(&t, 8, name);
    put_bytes(&t, 9, data, bytes);
    put_part(&g->tensors, 5, &t);
}

void fm_onnx_node(fm_onnx *g, const char *op, const char *const *in, int n_in, const char *out, const fm_onnx_attribute *a)
{
    enum { INT = 2, INTS = 7 };
    fm_message node = {0};
    for (int i = 0; i < n_in; i++)
        put_text(&node, 1, in[i]);
    put_text(&node, 2, out);
    put_text(&node, 3, out);
    put_text(&node, 4, op);
    for (; a && a->name; a++) {
        fm_message part = {0};
        put_text(&part, 1, a->name);
        if (!a->n)
            put_int(&part, 3, a->value[0]);
        for (int i = 0; i < a->n; i++)
            put_int(&part, 8, a->value[i]);
        put_int(&part, 20, a->n ? INTS : INT);
        put_part(&node, 5, &part);
    }
    put_part(&g->nodes, 1, &node);
}

/* A float tensor [batch, dim...] that goes in or comes out. */
static void put_value(fm_message *graph, unsigned field, const char *name, int n_dim, const int64_t *dim)
{
    fm_message shape = {0}, batch = {0}, tensor = {0}, type = {0}, value = {0};
    put_text(&batch, 2, "batch");
    put_part(&shape, 1, &batch);
    for (int i = 0; i < n_dim; i++) {
        fm_message d = {0};
        put_int(&d, 1, dim[i]);
        put_part(&shape, 1, &d);
    }
    put_int(&tensor, 1, FLOAT);
    put_part(&tensor, 2, &shape);
    put_part(&type, 1, &tensor);
    put_text(&value, 1, name);
    put_part(&value, 2, &type);
    put_part(graph, field, &value);
}

status fm_onnx_write(fm_onnx *g, const char *path, const char *input, int n_in, const int64_t *in, const char *output, int n_out,
                     const int64_t *out)
{
    fm_message graph = {0}, model = {0}, opset = {0};
    nb_atomic file;
    graph.failed = g->nodes.failed || g->tensors.failed;
    put(&graph, g->nodes.data, g->nodes.bytes);
    put_text(&graph, 2, "nibble");
    put(&graph, g->tensors.data, g->tensors.bytes);
    put_value(&graph, 11, input, n_in, in);
    put_value(&graph, 12, output, n_out, out);
    put_int(&model, 1, IR_VERSION);
    put_text(&model, 2, "nibble");
    put_part(&model, 7, &graph);
    put_text(&opset, 1, "");
    put_int(&opset, 2, OPSET);
    put_part(&model, 8, &opset);
    status s = model.failed ? NB_NOMEM : nb_atomic_begin(&file, path);
    if (s == NB_OK) {
        if (fwrite(model.data, 1, model.bytes, file.file) == model.bytes) {
            s = nb_atomic_commit(&file);
        } else {
            nb_atomic_abort(&file);
            s = nb_fail(NB_IO, "%s: cannot be written", path);
        }
    }
    free(model.data);
    return s;
}

void fm_onnx_free(fm_onnx *g)
{
    free(g->nodes.data);
    free(g->tensors.data);
    *g = (fm_onnx){0};
}
