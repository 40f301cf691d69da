/* tokenizer_chat.c - conversations as text, by the known families of chat templates:
 *   ChatML    <|im_start|>ROLE\nCONTENT<|im_end|>\n                       (a default system message where it has one)
 *   Llama-3   <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>              CONTENT trimmed, BOS in front
 *   Phi-3     <|ROLE|>\nCONTENT<|end|>\n
 *   Zephyr    <|ROLE|>\nCONTENT EOS\n
 *   Llama-2   BOS [INST] CONTENT [/INST] ANSWER EOS, contents trimmed; the system message as <<SYS>>\n...\n<</SYS>>\n\n
 *             in front of the first content
 * Which one a template is, is seen from what stands in it. Source: llama.cpp src/llama-chat.cpp; the templates of
 * SmolLM2, Qwen2, Llama-2-chat, Llama-3-Instruct, TinyLlama-1.1B-Chat and Phi-3-mini.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *text;
    size_t bytes, capacity;
    bool failed;
} buffer;

static void put(buffer *b, const char *text, size_t bytes)
{
    if (!b->failed && bytes >= b->capacity - b->bytes) {
        size_t capacity = b->capacity * 2 + bytes + 256;
        char *grown = nb_resize(b->text, capacity, 1);
        b->failed = !grown;
        b->text = grown ? grown : b->text;
        b->capacity = grown ? capacity : b->capacity;
    }
    if (b->failed)
        return;
    if (bytes > 0)
        memcpy(b->text + b->bytes, text, bytes);
    b->bytes += bytes;
    b->text[b->bytes] = 0;
}

static void put_string(buffer *b, const char *text)
{
    put(b, text, strlen(text));
}

static void put_piece(buffer *b, const fm_tokenizer *tk, int32_t id)
{
    fm_piece p = fm_tokenizer_piece(tk, id);
    put(b, p.text.text, p.text.bytes);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Without white space at its end, and without that at its start if both. */
static void put_trimmed(buffer *b, const char *text, bool both)
{
    size_t bytes = strlen(text);
    while (bytes > 0 && is_space(text[bytes - 1]))
        bytes--;
    for (; both && bytes > 0 && is_space(*text); bytes--)
        text++;
    put(b, text, bytes);
}

/* ---- families ---- */

/* One message: before ROLE between CONTENT after; after NULL: EOS and a newline. */
typedef struct {
    const char *name, *seen[3]; /* a template with all of these is one (up to the first NULL) */
    const char *before, *between, *after, *prompt;
    bool trims, begins_with_bos, is_llama2;
} family;

static const family families[] = {
    {.name = "ChatML",
     .seen = {"<|im_start|>", "<|im_end|>"},
     .before = "<|im_start|>",
     .between = "\n",
     .after = "<|im_end|>\n",
     .prompt = "<|im_start|>assistant\n"},
    {.name = "Llama-2", .seen = {"[INST]", "<<SYS>>"}, .is_llama2 = true},
    {.name = "Llama-3",
     .seen = {"<|start_header_id|>", "<|end_header_id|>"},
     .before = "<|start_header_id|>",
     .between = "<|end_header_id|>\n\n",
     .after = "<|eot_id|>",
     .prompt = "<|start_header_id|>assistant<|end_header_id|>\n\n",
     .trims = true,
     .begins_with_bos = true},
    {.name = "Phi-3",
     .seen = {"<|assistant|>", "<|end|>"},
     .before = "<|",
     .between = "|>\n",
     .after = "<|end|>\n",
     .prompt = "<|assistant|>\n",
     .begins_with_bos = true},
    {.name = "Zephyr",
     .seen = {"<|user|>", "eos_token"},
     .before = "<|",
     .between = "|>\n",
     .prompt = "<|assistant|>\n"},
    {.name = "Zephyr",
     .seen = {"<|user|>", "<|endoftext|>"},
     .before = "<|",
     .between = "|>\n",
     .after = "<|endoftext|>\n",
     .prompt = "<|assistant|>\n"},
};

static const family *family_of(const char *template)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool all = true;
        for (int k = 0; k < 3 && families[i].seen[k]; k++)
            all = all && strstr(template, families[i].seen[k]);
        if (all)
            return &families[i];
    }
    return NULL;
}

/* ChatML: the text in the template that stands for a system message, {NULL, 0} if there is none. */
static fm_text default_system(const char *template)
{
    static const char start[] = "<|im_start|>system";
    for (const char *p = strstr(template, start); p; p = strstr(p + 1, start)) {
        const char *text = p + sizeof start - 1;
        text += *text == '\n' ? 1 : strncmp(text, "\\n", 2) == 0 ? 2 : 0;
        const char *end = strstr(text, "<|im_end|>");
        if (text > p + sizeof start - 1 && end && *text != '\'' && *text != '"')
            return (fm_text){text, (size_t)(end - text)};
    }
    return (fm_text){NULL, 0};
}

/* A string literal's text: \n and escaped quotes. */
static void put_literal(buffer *b, fm_text t)
{
    for (size_t i = 0; i < t.bytes; i++) {
        bool escaped = t.text[i] == '\\' && i + 1 < t.bytes;
        i += escaped;
        put(b, escaped && t.text[i] == 'n' ? "\n" : t.text + i, 1);
    }
}

/* ---- rendering ---- */

static bool is_role(const fm_chat_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static void render_turns(buffer *b, const fm_tokenizer *tk, const family *f, const fm_chat_message *m, int64_t n)
{
    fm_text system = f == &families[0] ? default_system(tk->vocab->chat_template) : (fm_text){NULL, 0};
    if (f->begins_with_bos && !tk->add_bos)
        put_piece(b, tk, tk->bos);
    if (system.text && !is_role(&m[0], "system")) {
        put_string(b, "<|im_start|>system\n");
        put_literal(b, system);
        put_string(b, "<|im_end|>\n");
    }
    for (int64_t i = 0; i < n; i++) {
        put_string(b, f->before);
        put_string(b, m[i].role);
        put_string(b, f->between);
        if (f->trims)
            put_trimmed(b, m[i].content, true);
        else
            put_string(b, m[i].content);
        if (!f->after)
            put_piece(b, tk, tk->eos);
        put_string(b, f->after ? f->after : "\n");
    }
}

static void render_llama2(buffer *b, const fm_tokenizer *tk, const fm_chat_message *m, int64_t n)
{
    const bool has_system = is_role(&m[0], "system");
    for (int64_t i = has_system; i < n; i++) {
        const bool is_first = i == has_system;
        if (!is_role(&m[i], "user")) {
            put_string(b, " ");
            put_trimmed(b, m[i].content, true);
            put_string(b, " ");
            put_piece(b, tk, tk->eos);
            continue;
        }
        if (!is_first || !tk->add_bos)
            put_piece(b, tk, tk->bos);
        put_string(b, "[INST] ");
        if (is_first && has_system) {
            put_string(b, "<<SYS>>\n");
            put_string(b, m[0].content);
            put_string(b, "\n<</SYS>>\n\n");
        }
        put_trimmed(b, m[i].content, !(is_first && has_system));
        put_string(b, " [/INST]");
    }
}

static status check_messages(const fm_chat_message *m, int64_t n, bool alternate)
{
    if (n == 0)
        return nb_fail(NB_USAGE, "a conversation without messages");
    const bool has_system = is_role(&m[0], "system");
    for (int64_t i = has_system; i < n; i++) {
        bool is_user = is_role(&m[i], "user");
        if (!is_user && !is_role(&m[i], "assistant"))
            return nb_fail(NB_USAGE, "message %lld has the role '%.40s'; system (first), user and assistant are known",
                           (long long)i, m[i].role);
        if (alternate && is_user != ((i - has_system) % 2 == 0))
            return nb_fail(NB_USAGE, "message %lld: in this template user and assistant take turns", (long long)i);
    }
    return n > has_system ? NB_OK : nb_fail(NB_USAGE, "a conversation of a system message only");
}

status fm_chat_render(const fm_tokenizer *tk, const fm_chat_message *messages, int64_t n, bool add_generation_prompt,
                      char **text)
{
    *text = NULL;
    const char *template = fm_chat_template(tk);
    if (!template)
        return nb_fail(NB_USAGE, "this tokenizer came without a chat template; the model may not be made for chat");
    const family *f = family_of(template);
    if (!f)
        return nb_fail(NB_UNSUPPORTED,
                       "the chat template is not recognized; ChatML, Llama-2, Llama-3, Phi-3 and "
                       "Zephyr are; it begins '%.60s'",
                       template);
    TRY(check_messages(messages, n, f->is_llama2));
    buffer b = {0};
    put_string(&b, "");
    if (f->is_llama2)
        render_llama2(&b, tk, messages, n);
    else
        render_turns(&b, tk, f, messages, n);
    if (add_generation_prompt && f->prompt)
        put_string(&b, f->prompt);
    if (b.failed) {
        free(b.text);
        return NB_NOMEM;
    }
    *text = b.text;
    return NB_OK;
}
