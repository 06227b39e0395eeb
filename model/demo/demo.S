# Links the demo model into the executable, aligned as its sections are.
    .section .rodata
    .balign 4096
    .global demo_blob_begin
    .global demo_blob_end
demo_blob_begin:
    .incbin "model/demo/demo.blob"
demo_blob_end:
    .byte 0
    .section .note.GNU-stack, "", @progbits
