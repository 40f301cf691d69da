# Verses as `bible -f` prints them ("Ge1:1 In the beginning ...") -> passages of a chapter, one a line, of 520 letters
# or more where the chapter has them: about what fits into 256 tokens.
{
    chapter = $1
    sub(/:.*/, "", chapter)
    sub(/^[^ ]* /, "")
}
chapter != last || length(text) >= 520 {
    if (text != "")
        print text
    text = ""
    last = chapter
}
{ text = text (text == "" ? "" : " ") $0 }
END { if (text != "") print text }
