/* tokenizer_sentencepiece.c - reader of SentencePiece's .model, a protocol buffer (proto2).
 *
 *   message   = { varint (field << 3 | wire type), value };  wire types: 0 varint, 1 8 bytes, 2 varint length + bytes,
 * 5 4 bytes ModelProto      1 pieces*: { 1 piece, 2 score f32, 3 type = NORMAL }   2 TrainerSpec   3 NormalizerSpec
 *   TrainerSpec     3 model_type = UNIGRAM 1, BPE 2    24 treat_whitespace_as_suffix    35 byte_fallback
 *                   45 unk_piece, 46 bos_piece, 47 eos_piece, 48 pad_piece = <unk>, <s>, </s>, <pad>
 *   NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix = true   4 remove_extra_whitespaces = true
 *                   5 escape_whitespaces = true
 * As in SentencePiece, special ids are those of the control pieces with these names. Unknown fields are skipped.
 * Source: sentencepiece src/sentencepiece_model.proto, sentencepiece_processor.cc.
 */
#include "io/tokenizer.h"

#include <string.h>

typedef struct {
    const uint8_t *p, *end;
} slice;

typedef struct {
    uint64_t number; /* of the field */
    uint64_t value;  /* of a varint or of 4 bytes */
    slice bytes;     /* of a length-delimited field */
    int wire;
} field;

typedef struct { /* what of the two specs decides how texts are encoded */
    int64_t model_type;
    bool suffix, byte_fallback, add_dummy_prefix, remove_extra, escape;
    size_t charsmap_bytes;
    slice bos, eos, pad; /* names; p NULL: the default */
} specs;

static status read_varint(uint64_t *x, slice *s)
{
    *x = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (s->p == s->end)
            break;
        uint8_t byte = *s->p++;
        *x |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return NB_OK;
    }
    return nb_fail(NB_FORMAT, "SentencePiece model: a number is damaged or cut off");
}

static status read_field(field *f, slice *s)
{
    uint64_t key;
    TRY(read_varint(&key, s));
    *f = (field){.number = key >> 3, .wire = (int)(key & 7)};
    size_t left = (size_t)(s->end - s->p);
    uint64_t bytes = f->wire == 1 ? 8 : f->wire == 5 ? 4 : 0;
    if (f->wire == 0)
        return read_varint(&f->value, s);
    if (f->wire == 2) {
        TRY(read_varint(&bytes, s));
        left = (size_t)(s->end - s->p);
    }
    if (bytes > left || f->number == 0 || (f->wire != 1 && f->wire != 2 && f->wire != 5))
        return nb_fail(NB_FORMAT, "SentencePiece model: field %llu (wire type %d) is damaged or cut off",
                       (unsigned long long)f->number, f->wire);
    f->bytes = (slice){s->p, s->p + bytes};
    for (int i = 0; i < 4 && f->wire == 5; i++)
        f->value |= (uint64_t)s->p[i] << 8 * i;
    s->p += bytes;
    return NB_OK;
}

static status read_piece(fm_tokenizer *tk, slice s)
{
    slice text = {0};
    float score = 0.0f;
    uint64_t type = FM_PIECE_NORMAL;
    while (s.p < s.end) {
        field f;
        TRY(read_field(&f, &s));
        if (f.number == 1 && f.wire == 2)
            text = f.bytes;
        if (f.number == 2 && f.wire == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&score, &bits, 4);
        }
        if (f.number == 3 && f.wire == 0)
            type = f.value;
    }
    if (type < FM_PIECE_NORMAL || type > FM_PIECE_BYTE)
        return nb_fail(NB_FORMAT, "token %lld has type %llu; 1 to 6 are known", (long long)tk->vocab->n,
                       (unsigned long long)type);
    if (type == FM_PIECE_UNKNOWN) {
        if (tk->unknown >= 0)
            return nb_fail(NB_FORMAT, "tokens %d and %lld are both the unknown token", (int)tk->unknown,
                           (long long)tk->vocab->n);
        tk->unknown = (int32_t)tk->vocab->n;
    }
    return fm_vocab_add(tk, (const char *)text.p, (size_t)(text.end - text.p), score, (fm_piece_type)type);
}

static status read_trainer(specs *o, slice s)
{
    while (s.p < s.end) {
        field f;
        TRY(read_field(&f, &s));
        if (f.wire == 0 && f.number == 3)
            o->model_type = (int64_t)f.value;
        if (f.wire == 0 && f.number == 24)
            o->suffix = f.value;
        if (f.wire == 0 && f.number == 35)
            o->byte_fallback = f.value;
        if (f.wire == 2 && f.number == 46)
            o->bos = f.bytes;
        if (f.wire == 2 && f.number == 47)
            o->eos = f.bytes;
        if (f.wire == 2 && f.number == 48)
            o->pad = f.bytes;
    }
    return NB_OK;
}

static status read_normalizer(specs *o, slice s)
{
    while (s.p < s.end) {
        field f;
        TRY(read_field(&f, &s));
        if (f.wire == 2 && f.number == 2)
            o->charsmap_bytes = (size_t)(f.bytes.end - f.bytes.p);
        if (f.wire == 0 && f.number == 3)
            o->add_dummy_prefix = f.value;
        if (f.wire == 0 && f.number == 4)
            o->remove_extra = f.value;
        if (f.wire == 0 && f.number == 5)
            o->escape = f.value;
    }
    return NB_OK;
}

static status check_specs(const specs *o)
{
    static const char *const names[] = {"unknown", "UNIGRAM", "BPE", "WORD", "CHAR"};
    if (o->model_type != 2)
        return nb_fail(
            NB_UNSUPPORTED, "SentencePiece model of type %lld (%s); only BPE is read (spm_train --model_type=bpe)",
            (long long)o->model_type, o->model_type >= 0 && o->model_type <= 4 ? names[o->model_type] : names[0]);
    if (o->charsmap_bytes > 0)
        return nb_fail(NB_UNSUPPORTED,
                       "SentencePiece model with a normalization table of %zu bytes; only "
                       "--normalization_rule_name=identity is read",
                       o->charsmap_bytes);
    if (o->suffix || !o->escape)
        return nb_fail(NB_UNSUPPORTED, "SentencePiece model with %s is not read",
                       o->suffix ? "treat_whitespace_as_suffix" : "escape_whitespaces off");
    return NB_OK;
}

/* The id of the control piece of that name, -1 if there is none. */
static int32_t control_id(const fm_tokenizer *tk, slice name, const char *otherwise)
{
    const char *text = name.p ? (const char *)name.p : otherwise;
    int32_t id = fm_tokenizer_find(tk, text, name.p ? (size_t)(name.end - name.p) : strlen(otherwise));
    return id >= 0 && tk->vocab->piece[id].type == FM_PIECE_CONTROL ? id : -1;
}

status fm_tokenizer_read_sentencepiece(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    TRY(fm_vocab_new(tk, FM_TOKENIZER_SPM));
    specs o = {.model_type = 1, .add_dummy_prefix = true, .remove_extra = true, .escape = true};
    for (slice s = {data, data + bytes}; s.p < s.end;) {
        field f;
        TRY(read_field(&f, &s));
        if (f.wire != 2)
            continue;
        if (f.number == 1)
            TRY(read_piece(tk, f.bytes));
        if (f.number == 2)
            TRY(read_trainer(&o, f.bytes));
        if (f.number == 3)
            TRY(read_normalizer(&o, f.bytes));
    }
    TRY(check_specs(&o));
    tk->add_space_prefix = o.add_dummy_prefix;
    tk->add_bos = true;
    tk->remove_extra_spaces = o.remove_extra;
    TRY(fm_vocab_index(tk->vocab));
    tk->bos = control_id(tk, o.bos, "<s>");
    tk->eos = control_id(tk, o.eos, "</s>");
    tk->pad = control_id(tk, o.pad, "<pad>");
    TRY(fm_tokenizer_seal(tk));
    if (o.byte_fallback != tk->byte_fallback)
        return nb_fail(NB_FORMAT, "SentencePiece model: byte_fallback is %s but %s byte has a token",
                       o.byte_fallback ? "on" : "off", o.byte_fallback ? "not every" : "every");
    return NB_OK;
}
