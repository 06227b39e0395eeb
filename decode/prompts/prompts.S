# Links the built-in set of prompts into the executable.
    .section .rodata
    .global prompts_begin
    .global prompts_end
prompts_begin:
    .incbin "decode/prompts/prompts.jsonl"
prompts_end:
    .byte 0
    .section .note.GNU-stack, "", @progbits
