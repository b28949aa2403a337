//! Prints the public API that rustdoc's JSON describes, one item a line.

use std::process::ExitCode;

use public_api::Builder;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: public-api-listing PATH_OF_RUSTDOC_JSON");
        return ExitCode::FAILURE;
    };
    let builder = Builder::from_rustdoc_json(path)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(false)
        .omit_blanket_impls(true);
    match builder.build() {
        Ok(api) => {
            print!("{api}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
