//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    linewarden::cli::main(std::env::args_os())
}
